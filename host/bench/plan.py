"""What a bench will do: jobs, profiles and the order of blocks. Pure: no I/O."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from host.client import Cooling, SegmentSpec
from host.errors import unknown_name
from host.stats.phases import BLOCKS, SUSTAINED, TOTAL_S, block_seconds
from quant.methods.grammar import Variant

SECOND_NS = 1_000_000_000
PROFILED_INFERENCES = 10
# Whose heat a run must not inherit from the one before it.
COOLDOWN_SITES = ("skin", "npu")


@dataclass(frozen=True)
class Profile:
    """How long a run is measured, in device time: both minima hold, the maximum cuts."""

    name: str
    min_inferences: int
    min_s: float
    max_s: float
    warmup_s: float  # per block
    idle_s: float  # each idle baseline
    blocks: int = 6
    warmup_max_s: float = 0.0  # warm up until the latency is steady, at most this long
    cooldown_s: float = 300.0  # at most, before a block

    @property
    def contiguous(self) -> bool:
        """All blocks of a run follow each other, so that they share its heat and no other's."""
        return self.name == SUSTAINED

    def block_s(self, index: int) -> tuple[float, float]:
        """(least, most) seconds of a timed block."""
        if self.contiguous:
            return block_seconds(index), block_seconds(index)
        return self.min_s / self.blocks, self.max_s / self.blocks


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("rapid", 64, 6, 60, 0.25, 0.5, warmup_max_s=2.0),
        Profile("quick", 128, 10, 60, 0.5, 1.0, warmup_max_s=5.0),
        Profile("normal", 1024, 60, 600, 1.0, 5.0, warmup_max_s=30.0),
        # One stretch from a cool device: host.stats.phases says which part of it counts.
        # The skin gives ten minutes of heat back in more than five.
        Profile(SUSTAINED, 1, TOTAL_S, TOTAL_S, 0.0, 10.0, blocks=BLOCKS, cooldown_s=1800.0),
    )
}


def get_profile(name: str | None, *, emulated: bool) -> Profile:
    """The named profile; default rapid on an emulated device, normal on a real one."""
    if name is None:
        return PROFILES["rapid" if emulated else "normal"]
    if name not in PROFILES:
        raise unknown_name("profile", name, PROFILES)
    return PROFILES[name]


@dataclass(frozen=True)
class JobVariant:
    """A variant as runs record it: made here from a Variant, or read from a finished artifact."""

    canonical: str
    methods: tuple[str, ...]
    options_json: str

    @classmethod
    def of(cls, variant: Variant) -> JobVariant:
        return cls(variant.canonical, variant.methods, variant.options_json)


@dataclass(frozen=True)
class Job:
    """One run to be: model x variant. `skip` says why it will not run; empty = it will."""

    run_id: str
    model_name: str
    variant: JobVariant
    skip: str = ""


@dataclass(frozen=True)
class Conditions:
    """What every segment of a bench is run under."""

    soc: str
    profile: Profile
    perf_profile: str = ""  # empty: as the artifact's run settings say
    sample_rate_hz: float = 100.0
    cooldown_timeout_s: float = 300.0  # 0: no gate
    cooldown_above_c: float = 3.0
    ceilings: tuple[tuple[str, float], ...] = ()
    stop_charging: bool = False

    def cooling(self, index: int) -> Cooling | None:
        """The gate before a block. A block of a sustained run wants the heat of the one before."""
        if not self.cooldown_timeout_s or (self.profile.contiguous and index):
            return None
        timeout = round(self.cooldown_timeout_s * SECOND_NS)
        return Cooling(COOLDOWN_SITES, self.cooldown_above_c, timeout)


def new_run_ids(session_id: str, taken: Collection[str] = ()) -> Iterator[str]:
    """The ids of a session's runs to come, without those that it has."""
    ids = (f"{session_id}-{number:02d}" for number in itertools.count(1))
    return (run_id for run_id in ids if run_id not in taken)


def check_segment(run_id: str, artifact: str, under: Conditions) -> SegmentSpec:
    """Cold and warm load, first inference, goldens."""
    return SegmentSpec(
        run_id,
        artifact,
        under.soc,
        "check",
        idle_ns=round(under.profile.idle_s * SECOND_NS),
        perf_profile=under.perf_profile,
        sample_rate_hz=under.sample_rate_hz,
        ceilings=under.ceilings,
        stop_charging=under.stop_charging,
    )


def footprint_segment(run_id: str, artifact: str, under: Conditions) -> SegmentSpec:
    """Memory while a fresh process loads and infers; untimed."""
    return SegmentSpec(
        run_id,
        artifact,
        under.soc,
        "footprint",
        min_duration_ns=SECOND_NS,
        perf_profile=under.perf_profile,
    )


def profile_segment(run_id: str, artifact: str, under: Conditions) -> SegmentSpec:
    """Cycles of every operator, in a process of its own that is thrown away afterwards."""
    return SegmentSpec(
        run_id,
        artifact,
        under.soc,
        "profile",
        min_inferences=PROFILED_INFERENCES,
        perf_profile=under.perf_profile,
    )


def block_segment(run_id: str, artifact: str, index: int, under: Conditions) -> SegmentSpec:
    """One timed block: an equal share of the profile's minima and maximum."""
    profile = under.profile
    least_s, most_s = profile.block_s(index)
    idle_ns = round(profile.idle_s * SECOND_NS)
    return SegmentSpec(
        run_id,
        artifact,
        under.soc,
        "block",
        block_index=index,
        min_inferences=math.ceil(profile.min_inferences / profile.blocks),
        min_duration_ns=round(least_s * SECOND_NS),
        max_duration_ns=round(most_s * SECOND_NS),
        warmup_ns=round(profile.warmup_s * SECOND_NS),
        warmup_max_ns=round(profile.warmup_max_s * SECOND_NS),
        idle_ns=0 if profile.contiguous and index else idle_ns,
        idle_after_ns=0 if profile.contiguous and index < profile.blocks - 1 else idle_ns,
        perf_profile=under.perf_profile,
        sample_rate_hz=under.sample_rate_hz,
        cooldown=under.cooling(index),
        ceilings=under.ceilings,
        stop_charging=under.stop_charging,
    )


def evaluate_segment(run_id: str, artifact: str, inputs: str, under: Conditions) -> SegmentSpec:
    """The outputs of every sample of the input set `inputs`; nothing is timed or sampled."""
    return SegmentSpec(
        run_id,
        artifact,
        under.soc,
        "evaluate",
        perf_profile=under.perf_profile,
        inputs_sha256=inputs,
    )


def block_order(
    run_ids: Sequence[str], blocks: int, seed: int, *, contiguous: bool = False
) -> list[tuple[str, int]]:
    """(run, block) pairs: every block holds every run once, in an order of its own.

    A fixed order lets the heat left by one variant always fall on the same next one; randomised
    blocks spread it evenly (randomised complete block design). `contiguous`: one run after the
    other, in a random order.
    """
    rng = random.Random(seed)
    if contiguous:
        shuffled = rng.sample(list(run_ids), len(run_ids))
        return [(run, block) for run in shuffled for block in range(blocks)]
    order: list[tuple[str, int]] = []
    for block in range(blocks):
        runs = list(run_ids)
        rng.shuffle(runs)
        order += [(run, block) for run in runs]
    return order
