"""Profiles, block order and resuming: what a bench will do before it does anything."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from host.bench.device import last_time_ns, missing_blocks, shift
from host.bench.plan import (
    PROFILES,
    Conditions,
    JobVariant,
    block_order,
    block_segment,
    check_segment,
    get_profile,
    new_run_ids,
)
from host.bench.prepare import parse_ceilings, parse_input_shapes, skip_reason
from host.cli.bench import artifact_name
from host.errors import UserError
from host.store.rows import Block, Mark, RawBatch, Samples
from quant.htp.soc import SOCS, get_soc
from quant.methods import METHODS
from quant.methods.grammar import parse_methods


def test_profiles_are_the_contract():
    got = {p.name: (p.min_inferences, p.min_s, p.max_s) for p in PROFILES.values()}
    assert got == {
        "rapid": (64, 6, 60),
        "quick": (128, 10, 60),
        "normal": (1024, 60, 600),
        "sustained": (1, 600, 600),
    }
    assert all(p.blocks >= 6 for p in PROFILES.values())


def test_new_runs_of_a_resumed_session_take_no_number_that_is_taken():
    assert list(itertools.islice(new_run_ids("s"), 3)) == ["s-01", "s-02", "s-03"]
    # A failed run that is done again keeps its id: the numbers may have gaps.
    assert list(itertools.islice(new_run_ids("s", {"s-01", "s-03"}), 2)) == ["s-02", "s-04"]


def test_default_profile_depends_on_the_device():
    assert get_profile(None, emulated=True).name == "rapid"
    assert get_profile(None, emulated=False).name == "normal"
    with pytest.raises(UserError, match="Did you mean rapid"):
        get_profile("rapd", emulated=True)


@pytest.mark.parametrize("name", PROFILES)
def test_blocks_together_meet_the_minima_and_stay_under_the_maximum(name):
    p = PROFILES[name]
    under = Conditions("sm8650", p)
    all_of_them = [block_segment("r", "a" * 64, i, under) for i in range(p.blocks)]
    assert sum(s.min_inferences for s in all_of_them) >= p.min_inferences
    assert sum(s.min_duration_ns for s in all_of_them) >= p.min_s * 1e9 - p.blocks
    assert sum(s.max_duration_ns for s in all_of_them) <= p.max_s * 1e9 + p.blocks
    assert check_segment("r", "a" * 64, under).kind == "check"
    gated = [s.cooldown is not None for s in all_of_them]
    assert all(gated) or (gated[0] and not any(gated[1:]) and name == "sustained")


def test_a_sustained_run_is_one_stretch_with_idle_time_at_its_ends():
    p = PROFILES["sustained"]
    under = Conditions("sm8650", p)
    first, *middle, last = [block_segment("r", "a" * 64, i, under) for i in range(p.blocks)]
    assert (first.idle_ns, first.idle_after_ns) == (10_000_000_000, 0)
    assert (last.idle_ns, last.idle_after_ns) == (0, 10_000_000_000)
    assert {(s.idle_ns, s.idle_after_ns, s.warmup_ns) for s in middle} == {(0, 0, 0)}
    order = block_order(["a", "b", "c"], p.blocks, 5, contiguous=True)
    assert [b for _, b in order] == list(range(p.blocks)) * 3
    runs = [order[i * p.blocks][0] for i in range(3)]
    assert sorted(runs) == ["a", "b", "c"] and len({r for r, _ in order[: p.blocks]}) == 1


def test_every_block_holds_every_run_once_in_changing_orders():
    runs = ["a", "b", "c", "d"]
    order = block_order(runs, 12, seed=1)
    for block in range(12):
        assert sorted(r for r, b in order if b == block) == runs
    firsts = Counter(order[i * 4][0] for i in range(12))
    assert len(firsts) > 1, "a fixed order lets heat fall on the same run every time"
    assert order == block_order(runs, 12, seed=1)
    assert order != block_order(runs, 12, seed=2)


def test_resuming_does_only_what_is_missing():
    order = [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert missing_blocks(order, {"a": {0}, "b": {0, 1}}) == [("a", 1)]


def test_times_after_a_reboot_are_moved_behind_the_last_ones():
    raw = RawBatch(
        1,
        "r",
        samples=(Samples(2, np.array([5, 7], np.int64), np.array([1.0, 2.0])),),
        marks=(Mark("timed", 4, 8),),
        block=Block(0, 3, 4, 9, np.array([1.0], np.float32)),
    )
    assert last_time_ns(raw) == 9
    moved = shift(raw, 100)
    assert moved.samples[0].t_ns.tolist() == [105, 107]
    assert (moved.marks[0].t_start_ns, moved.marks[0].t_end_ns) == (104, 108)
    assert moved.block is not None
    assert (moved.block.t_first_ns, moved.block.t_last_ns) == (104, 109)
    assert moved.block.duration_ns == 5
    assert shift(raw, 0) is raw


def test_input_shapes():
    assert parse_input_shapes(["a:b:1,3"]) == {"a:b": (1, 3)}
    for bad in ("x", "x:", "x:1,a", "x:0,3", ":1"):
        with pytest.raises(UserError, match="is not name:d1,d2"):
            parse_input_shapes([bad])


def test_ceilings():
    assert parse_ceilings("npu=95, skin=43.5") == (("npu", 95.0), ("skin", 43.5))
    assert parse_ceilings("") == ()
    with pytest.raises(UserError, match="Did you mean npu"):
        parse_ceilings("npv=95")
    for bad in ("npu=hot", "npu", "skin=nan", "npu=inf"):
        with pytest.raises(UserError, match="site=degrees"):
            parse_ceilings(bad)


def test_a_method_that_lacks_a_package_is_skipped_with_what_to_install(monkeypatch):
    row = METHODS["int8"]
    lacking = dataclasses.replace(row, missing=lambda: "pip install 'qhost[train]'")
    monkeypatch.setitem(METHODS, "int8", lacking)
    (variant,) = parse_methods("int8")
    assert "qhost[train]" in skip_reason(JobVariant.of(variant), get_soc("sm8650"))
    (other,) = parse_methods("int4")
    assert skip_reason(JobVariant.of(other), get_soc("sm8650")) == ""


def test_fp16_is_skipped_where_the_htp_has_none():
    (variant,) = parse_methods("fp16")
    reasons = {s.id: skip_reason(JobVariant.of(variant), s) for s in SOCS.values()}
    assert all(bool(reasons[s.id]) != s.fp16 for s in SOCS.values())
    assert "no fp16" in reasons["sm8350"]


def test_artifacts_are_named_by_their_variant_whatever_its_options_hold():
    assert (
        artifact_name("net", "int4[block-size=32]+sparse") == "net-int4-block-size-32-+sparse.qnn"
    )
    assert artifact_name("net", "as-is@a.b") == "net-as-is@a.b.qnn"
    assert "/" not in artifact_name("net", "hybrid[layer-wise-config=/home/me/l.json]")
    first, second = (artifact_name("net", f"int8[{'x' * 300}{i}]") for i in range(2))
    assert first != second and len(first) < 160
