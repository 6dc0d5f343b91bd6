"""The spool alone, and what it means for a host: nothing lost, nothing doubled, bounded."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from agent.errors import SpoolFull
from agent.spool import Spool
from protos import agent_pb2 as pb


def fill(spool: Spool, count: int, size: int = 20) -> list[int]:
    return [spool.append(lambda seq: f"{seq}".encode().ljust(size)) for _ in range(count)]


def content(spool: Spool) -> list[int]:
    found = []
    seq = spool.first_seq
    while (data := spool.read(seq)) is not None:
        found.append(int(data))
        seq += 1
    return found


def test_numbers_begin_at_1_without_gaps_and_survive_reopening(tmp_path):
    spool = Spool(tmp_path, file_bytes=100)
    assert fill(spool, 10) == list(range(1, 11))
    spool.close()
    again = Spool(tmp_path, file_bytes=100)
    assert content(again) == list(range(1, 11))
    assert fill(again, 2) == [11, 12]


def test_ack_frees_whole_files_and_is_remembered(tmp_path):
    spool = Spool(tmp_path, file_bytes=100)
    fill(spool, 10)
    before = spool.size_bytes
    spool.ack(7)
    assert spool.size_bytes < before
    assert spool.read(7) is None
    assert content(spool) == [8, 9, 10]
    spool.ack(3)
    assert spool.acked_seq == 7
    spool.close()
    assert content(Spool(tmp_path, file_bytes=100)) == [8, 9, 10]


def test_after_acking_everything_the_numbers_go_on(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, 5)
    spool.ack(5)
    assert (spool.size_bytes, list(tmp_path.glob("*.spool"))) == (0, [])
    spool.close()
    again = Spool(tmp_path)
    assert fill(again, 1) == [6]
    assert content(again) == [6]


def test_a_number_that_does_not_exist_cannot_be_acked(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, 2)
    with pytest.raises(ValueError, match="3 does not exist"):
        spool.ack(3)


@pytest.mark.parametrize("cut", [1, 10, 20, 35])
def test_a_record_cut_short_by_a_kill_is_removed_and_its_number_used_again(tmp_path, cut):
    spool = Spool(tmp_path)
    fill(spool, 3)
    spool.close()
    file = next(tmp_path.glob("*.spool"))
    os.truncate(file, file.stat().st_size - cut)
    again = Spool(tmp_path)
    assert content(again) == [1, 2]
    assert fill(again, 1) == [3]
    assert content(again) == [1, 2, 3]


def test_a_damaged_record_is_not_given_out(tmp_path):
    spool = Spool(tmp_path)
    fill(spool, 2)
    file = next(tmp_path.glob("*.spool"))
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(OSError, match="record 2 is damaged"):
        spool.read(2)


def test_the_bound_raises_and_keeps_what_is_there(tmp_path):
    spool = Spool(tmp_path, capacity_bytes=200, reserve_bytes=100, file_bytes=64)
    with pytest.raises(SpoolFull, match="200 bytes"):
        fill(spool, 100)
    kept = content(spool)
    assert kept == list(range(1, spool.next_seq))
    assert spool.size_bytes <= 200
    assert spool.append(lambda seq: b"%d" % seq, reserved=True) == len(kept) + 1
    spool.ack(kept[-1])
    assert fill(spool, 1) == [len(kept) + 2]


@contextmanager
def disk_full_at(size: int):
    """No file grows beyond `size`: writes are cut short and then refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing_that_was_appended(tmp_path):
    spool = Spool(tmp_path)
    with disk_full_at(500), pytest.raises(SpoolFull, match="disk takes no more"):
        fill(spool, 100)
    kept = spool.next_seq - 1
    assert 5 < kept < 30
    assert fill(spool, 2) == [kept + 1, kept + 2]
    assert content(spool) == list(range(1, kept + 3))
    spool.close()
    assert content(Spool(tmp_path)) == list(range(1, kept + 3))


_FULL_DISK = """
import pathlib, sys
from agent.errors import SpoolFull
from agent.spool import Spool
folder = pathlib.Path(sys.argv[1])
spool = Spool(folder)
try:
    while True:
        spool.append(lambda seq: b"%d" % seq + bytes(10_000))
except SpoolFull as error:
    print(error)
kept = spool.next_seq
end = bytes(12_000)
print(kept == spool.append(lambda seq: end, reserved=True), spool.read(kept) == end)
print((folder / "ballast").exists(), all(spool.read(i) for i in range(1, kept)))
"""


def test_the_end_of_a_segment_finds_room_on_a_full_disk(tmp_path):
    """On a file system of 600 kB, in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=600k tmpfs "$1" && exec "$2" -c "$0" "$1"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, _FULL_DISK,
         str(tmp_path), sys.executable],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this kernel allows no mount namespace")
    assert done.stdout.splitlines() == [
        "the device's disk takes no more: No space left on device", "True True", "False True",
    ], done.stderr  # fmt: skip


def test_readers_see_every_record_once_while_a_writer_appends(tmp_path):
    spool = Spool(tmp_path, file_bytes=1000)
    seen: list[int] = []
    woken = threading.Semaphore(0)
    spool.subscribe(lambda: woken.release())

    def read() -> None:
        while len(seen) < 500:
            woken.acquire(timeout=5)
            while (data := spool.read(len(seen) + 1)) is not None:
                seen.append(int(data))

    reader = threading.Thread(target=read)
    reader.start()
    fill(spool, 500)
    reader.join(10)
    assert seen == list(range(1, 501))


def test_a_host_that_comes_late_or_reconnects_gets_everything_once(
    start_agent, artifact_files, block_segment
):
    agent = start_agent()
    artifact = agent.put(artifact_files)
    segments = [block_segment(artifact, block_index=i) for i in range(4)]
    first = agent.call("Start", pb.StartRequest(session_id="s", segments=segments)).first_seq
    whole = agent.follow(first, 4)  # after the fact or live: the same
    seqs = [b.seq for b in whole]
    assert seqs == list(range(1, len(seqs) + 1))
    middle = seqs[len(seqs) // 2]
    again = agent.follow(middle, sum(b.HasField("end") for b in whole if b.seq >= middle))
    assert again == [b for b in whole if b.seq >= middle]
    agent.call("Ack", pb.AckRequest(seq=middle))
    after = agent.follow(1, sum(b.HasField("end") for b in whole if b.seq > middle))
    assert [b.seq for b in after] == seqs[seqs.index(middle) + 1 :]


def test_subscribing_beyond_the_end_is_refused(agent):
    beyond = agent.call("Status", pb.StatusRequest()).next_seq + 1
    with pytest.raises(grpc.RpcError) as refused:
        next(agent.call("Subscribe", pb.SubscribeRequest(from_seq=beyond)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_overflow_fails_the_run_and_says_so(start_agent, artifact_files, block_segment):
    agent = start_agent("--spool-bytes", "60000")
    artifact = agent.put(artifact_files)
    segments = [
        block_segment(artifact, run_id=f"r{i}", min_duration_ns=20_000_000_000) for i in range(2)
    ]
    first = agent.call("Start", pb.StartRequest(session_id="s", segments=segments)).first_seq
    ends = [b for b in agent.follow(first, 2) if b.HasField("end")]
    assert [(b.run_id, b.end.outcome) for b in ends] == [("r0", pb.FAILED), ("r1", pb.FAILED)]
    assert "spool is full" in ends[0].end.message
    assert ends[0].end.failure_class == "HARNESS_ERROR"
    agent.call("Ack", pb.AckRequest(seq=ends[-1].seq))
    short = block_segment(artifact, run_id="r2", min_duration_ns=0)
    first = agent.call("Start", pb.StartRequest(session_id="s", segments=[short])).first_seq
    assert agent.follow(first, 1)[-1].end.outcome == pb.OK
