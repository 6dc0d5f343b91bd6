"""A real board: when the agent may say silicon, and its platform on this machine's clock."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from agent.artifacts import ArtifactStore
from agent.bench import Bench
from agent.runtime.ort_qnn import OrtQnnRuntime
from agent.runtime.profile import parse_profile
from agent.silicon import SiliconPlatform, identify
from agent.spool import Spool
from protos import agent_pb2 as pb

SECOND = 1_000_000_000


def board(root: Path, **changes: str | None) -> Path:
    """The files of a Linux board with an SM8650; a change to None leaves a file out."""
    files: dict[str, str | None] = {
        "sys/devices/soc0/soc_id": "557",
        "proc/device-tree/model": "Board\0",
        "proc/device-tree/serial-number": "a1b2c3\0",
        "etc/os-release": 'NAME="X"\nPRETTY_NAME="Debian 12"',
        "dev/fastrpc-cdsp": "",
        "sys/class/hwmon/hwmon0/power1_input": "1500000",
        "sys/class/hwmon/hwmon0/power1_label": "vph_pwr",
        "sys/class/thermal/thermal_zone0/type": "nsphmx-0",
        "sys/class/thermal/thermal_zone0/temp": "41000",
        "sys/class/thermal/cooling_device0/type": "cdsp_sw",
        "sys/class/thermal/cooling_device0/cur_state": "0",
        "sys/power/wake_lock": "",
        "sys/power/wake_unlock": "",
    }
    for name, text in {**files, **changes}.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
    return root


def test_a_board_is_silicon_when_everything_fits(tmp_path):
    found = identify(board(tmp_path), "aarch64")
    assert found is not None
    assert (found.soc, found.serial, found.model) == ("sm8650", "a1b2c3", "Board")
    assert found.build == "Debian 12"
    assert found.silicon


EMULATED_PHONE = (
    "ro.qhost.emulated=1\nro.qhost.soc=sm8650\nro.serialno=E\n"
    "ro.build.id=E\nro.qhost.time_factor=1\nro.qhost.personality=board"
)


@pytest.mark.parametrize(
    ("changes", "cpu", "problem"),
    [
        ({}, "x86_64", "processor is x86_64"),
        ({"dev/fastrpc-cdsp": None}, "aarch64", "no device node of the DSP"),
        ({"system/build.prop": EMULATED_PHONE}, "aarch64", "an emulated device"),
    ],
)
def test_one_thing_amiss_and_it_is_no_silicon(tmp_path, changes, cpu, problem):
    found = identify(board(tmp_path, **changes), cpu)
    assert found is not None
    assert not found.silicon and problem in found.problem


def properties(**values: str):
    """getprop of an Android device."""
    props = {"ro.serialno": "R5C", "ro.product.model": "Phone", "ro.build.fingerprint": "a/b:15"}
    return lambda argv: (props | values).get(argv[1], "") + "\n"


def test_an_android_phone_says_what_it_is_by_its_properties(tmp_path):
    root = board(tmp_path, **{"dev/fastrpc-cdsp": None, "dev/adsprpc-smd": ""})
    found = identify(root, "aarch64", properties())
    assert found is not None and found.silicon
    assert (found.os, found.serial, found.model, found.build) == (
        "android", "R5C", "Phone", "a/b:15",
    )  # fmt: skip
    hidden = board(tmp_path / "b", **{"sys/devices/soc0/soc_id": None})
    assert identify(hidden, "aarch64", properties()) is None
    named = identify(hidden, "aarch64", properties(**{"ro.soc.model": "SM8550"}))
    assert named is not None and named.silicon and named.soc == "sm8550"
    emulator = identify(root, "aarch64", properties(**{"ro.kernel.qemu": "1"}))
    assert emulator is not None and "Android's own emulator" in emulator.problem


@pytest.mark.parametrize("soc_id", ["0", "321", "x", None])
def test_an_unknown_part_is_nothing(tmp_path, soc_id):
    assert identify(board(tmp_path, **{"sys/devices/soc0/soc_id": soc_id}), "aarch64") is None


def test_the_agent_does_not_start_where_there_is_no_device(tmp_path):
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x" * 32)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent", "--root", tmp_path / "root", "--token-file", token,
         "--device-root", board(tmp_path / "device")],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no inference on this sm8650: its processor is x86_64, not aarch64" in done.stderr
    assert "--emulate" in done.stderr


SHA = "a" * 64


@pytest.fixture
def here(tmp_path, artifact_files):
    """(platform, spool, bench) of a board whose DSP is QNN's emulator on this machine."""
    identity = identify(board(tmp_path / "device"))
    assert identity is not None
    root = tmp_path / "root"
    runtime = OrtQnnRuntime(root / "log", device_root=tmp_path / "device")
    platform = SiliconPlatform(identity, root, tmp_path / "device", runtime, {"qairt": "2.51"})
    store = ArtifactStore(root / "artifacts")
    for name, content in artifact_files.items():
        path = root / "artifacts" / SHA / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    spool = Spool(root / "spool")
    bench = Bench(platform, store, spool, root / "queue.pb")
    yield platform, spool, bench
    bench.close()


def until_ended(spool: Spool, count: int) -> list[pb.Batch]:
    """Every batch until `count` segments have ended."""
    batches: list[pb.Batch] = []
    end = time.monotonic() + 60
    while sum(b.HasField("end") for b in batches) < count:
        assert time.monotonic() < end
        data = spool.read(len(batches) + 1)
        if data is None:
            time.sleep(0.02)
        else:
            batches.append(pb.Batch.FromString(data))
    return batches


def test_without_silicon_the_description_can_only_say_emulated(here):
    description = here[0].description()
    assert description.substrate == pb.EMULATED
    assert "its processor is x86_64, not aarch64" in description.emulation_basis
    assert description.fingerprint["qairt"] == "2.51"


def test_a_block_on_this_machines_clock_with_the_real_sampler(
    here, tmp_path, check_segment, block_segment
):
    platform, spool, bench = here
    before = time.monotonic_ns()
    segment = block_segment(
        SHA, min_inferences=5, min_duration_ns=SECOND // 4, warmup_ns=SECOND // 10,
        idle_ns=SECOND // 5,
    )  # fmt: skip
    bench.start("s", [check_segment(SHA), segment])
    batches = until_ended(spool, 2)
    after = time.monotonic_ns()
    assert [b.end.outcome for b in batches if b.HasField("end")] == [pb.OK, pb.OK]
    (golden,) = [b.golden for b in batches if b.HasField("golden")]
    assert golden.bit_equal
    (load,) = [b.load for b in batches if b.HasField("load")]
    assert load.cold_s > load.warm_s > 0
    assert load.peak_memory_bytes > 20e6
    (block,) = [b.block for b in batches if b.HasField("block")]
    assert before < block.t_first_ns < block.t_last_ns < after
    assert block.inferences >= 5
    assert np.sum(block.per_iteration_us) == pytest.approx(
        (block.t_last_ns - block.t_first_ns) / 1e3, rel=1e-3
    )
    marks = [m for b in batches for m in b.marks]
    idle = next(m for m in marks if m.phase == pb.IDLE_BEFORE)
    last = next(m for m in marks if m.phase == pb.IDLE_AFTER)
    for channel in platform.description().channels:
        times = [
            t for b in batches for s in b.samples if s.channel == channel.id for t in s.t_ns
        ]  # fmt: skip
        assert min(times) <= idle.t_start_ns
        assert max(times) >= last.t_end_ns
    values = {v for b in batches for s in b.samples if s.channel == 1 for v in s.value}
    assert values == {1500.0}
    assert (tmp_path / "device/sys/power/wake_lock").read_text().startswith("qhost-")
    assert len([b for b in batches if b.HasField("sampler")]) == 2


@pytest.mark.parametrize("state", [0, 2])
def test_a_block_is_throttled_when_the_npus_cooling_device_says_so(
    here, tmp_path, block_segment, state
):
    _, spool, bench = here
    node = tmp_path / "device/sys/class/thermal/cooling_device0/cur_state"
    node.write_text(f"{state}\n")
    segment = block_segment(
        SHA, min_inferences=2, min_duration_ns=0, warmup_ns=0, idle_ns=SECOND // 10
    )
    bench.start("s", [segment])
    (block,) = [b.block for b in until_ended(spool, 1) if b.HasField("block")]
    assert block.throttled == bool(state)


def test_a_profile_pass_gives_cycles_per_operator_and_its_file(here, tmp_path, block_segment):
    _, spool, bench = here
    segment = block_segment(SHA, min_inferences=3)
    segment.kind = pb.PROFILE
    bench.start("s", [segment])
    batches = until_ended(spool, 1)
    assert batches[-1].end.outcome == pb.OK
    (profile,) = [b.profile for b in batches if b.HasField("profile")]
    assert len(profile.execute_us) == 3
    assert all(len(op.cycles) == 3 and min(op.cycles) > 0 for op in profile.ops)
    names = [op.name for op in profile.ops]
    assert (names[0], names[-1]) == ("Input", "Output")
    assert {"matmul", "relu"} <= set(names)
    text = (tmp_path / "root" / profile.file).read_text()
    assert f"{profile.ops[1].cycles[2]},CYCLES" in text


def test_a_profile_in_another_format_is_refused():
    with pytest.raises(ValueError, match="no QNN profile"):
        parse_profile("a,b\n1,2\n")


def test_cancelling_a_block_on_the_wall_clock_stops_its_loop(here, block_segment):
    _, spool, bench = here
    segment = block_segment(
        SHA, min_duration_ns=50 * SECOND, warmup_ns=0, idle_ns=0, max_duration_ns=60 * SECOND
    )
    bench.start("s", [segment])
    end = time.monotonic() + 20
    while spool.next_seq < 3:  # samples arrive: the block is under way
        assert time.monotonic() < end
        time.sleep(0.02)
    assert bench.cancel("") == 1
    batches = until_ended(spool, 1)
    assert batches[-1].end.outcome == pb.CANCELLED
    assert time.monotonic() < end + 10
