"""The life of the agent's process: how it starts, how it ends, what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from protos import agent_pb2 as pb

MINUTE = 60_000_000_000


def until(condition, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
    return value


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def with_child(agent, artifact_files, check_segment, children) -> int:
    """Run goldens in the agent so that its numerics process lives; returns that process."""
    artifact = agent.put(artifact_files)
    request = pb.StartRequest(session_id="s2", segments=[check_segment(artifact)])
    first = agent.call("Start", request).first_seq
    assert agent.follow(first, 1)[-1].end.outcome == pb.OK
    (child,) = children(agent.process.pid)
    return child


def test_sigterm_ends_cleanly_with_its_child(start_agent, artifact_files, check_segment, children):
    agent = start_agent()
    child = with_child(agent, artifact_files, check_segment, children)
    agent.process.terminate()
    assert agent.process.wait(10) == 0
    until(lambda: gone(child))


def test_sigkill_takes_the_child_along(start_agent, artifact_files, check_segment, children):
    agent = start_agent()
    child = with_child(agent, artifact_files, check_segment, children)
    agent.process.kill()
    agent.process.wait(10)
    until(lambda: gone(child))


def test_it_ends_when_its_parent_is_gone(start_agent, artifact_files, check_segment, children):
    agent = start_agent()
    child = with_child(agent, artifact_files, check_segment, children)
    agent.process.stdin.close()
    assert agent.process.wait(10) == 0
    until(lambda: gone(child))


def test_sigterm_in_the_middle_of_a_segment(start_agent, artifact_files, block_segment):
    agent = start_agent("--time-factor", "1")
    artifact = agent.put(artifact_files)
    segment = block_segment(artifact, min_duration_ns=MINUTE, max_duration_ns=MINUTE)
    agent.call("Start", pb.StartRequest(session_id="s", segments=[segment, segment]))
    until(lambda: agent.call("Status", pb.StatusRequest()).run_id == "run")
    agent.process.terminate()
    assert agent.process.wait(10) == 0


def test_a_killed_agents_successor_reports_its_segments_as_killed(
    start_agent, artifact_files, block_segment
):
    first = start_agent("--time-factor", "1")
    artifact = first.put(artifact_files)
    segments = [
        block_segment(artifact, block_index=i, min_duration_ns=MINUTE, max_duration_ns=MINUTE)
        for i in range(2)
    ]
    first.call("Start", pb.StartRequest(session_id="s", segments=segments))
    until(lambda: first.call("Status", pb.StatusRequest()).next_seq > 1)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(10)
    second = start_agent()
    batches = second.follow(1, 2)
    assert [b.seq for b in batches] == list(range(1, len(batches) + 1))
    ends = [(b.session_id, b.end.block_index, b.end.failure_class) for b in batches[-2:]]
    assert ends == [("s", 0, "KILLED"), ("s", 1, "KILLED")]
    assert second.call("Status", pb.StatusRequest()).artifacts == [artifact]
    third = second.call("Status", pb.StatusRequest())
    assert (third.busy, third.queued_segments) == (False, 0)


def test_the_numerics_process_killed_fails_the_segment_and_not_the_agent(
    start_agent, artifact_files, check_segment, children
):
    agent = start_agent()
    child = with_child(agent, artifact_files, check_segment, children)
    os.kill(child, signal.SIGKILL)
    until(lambda: not children(agent.process.pid))
    # Cached outputs need no process; another input does, and a new process gives it.
    files = dict(artifact_files)
    files["golden/sm8650/1.npz"] = files["golden/sm8650/0.npz"]
    artifact = agent.put(files)
    request = pb.StartRequest(session_id="again", segments=[check_segment(artifact)])
    first = agent.call("Start", request).first_seq
    assert agent.follow(first, 1)[-1].end.outcome == pb.OK


def test_a_token_that_others_can_read_is_refused(tmp_path):
    token = tmp_path / "token"
    token.write_text("x" * 40)
    token.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent", "--emulate", "sm8650", "--root", tmp_path / "root",
         "--token-file", token],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert "chmod 600" in done.stderr
    assert "x" * 40 not in done.stderr


def test_a_root_that_cannot_be_written_is_one_clear_line(tmp_path):
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x" * 40)
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent", "--emulate", "sm8650",
         "--root", tmp_path / "file" / "root", "--token-file", token],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Not a directory" in done.stderr


def test_it_ends_at_once_when_its_parent_was_gone_from_the_beginning(tmp_path):
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x" * 40)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "agent", "--emulate", "sm8650", "--root", tmp_path / "root",
         "--token-file", token, "--die-with-parent"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_agent_imports_without_onnxruntime():
    """Only grpcio, protobuf and numpy may be needed to start it."""
    code = (
        "import sys, agent.__main__\n"
        "top = {m.partition('.')[0] for m in sys.modules}\n"
        "bad = top & {'onnxruntime', 'onnxruntime_qnn', 'onnx', 'scipy', 'duckdb', 'pyarrow',"
        " 'quant', 'host', 'adbutils'}\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_tcp_port_when_it_listens_on_an_abstract_socket(start_agent):
    agent = start_agent("--listen", f"unix-abstract:qhost-test-{os.getpid()}")
    assert agent.ready["address"].startswith("unix-abstract:")
    assert agent.call("Status", pb.StatusRequest()).next_seq == 1
    inodes = set()
    for fd in Path(f"/proc/{agent.process.pid}/fd").iterdir():
        target = str(fd.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    listening = {line.split()[9] for t in tables for line in t if line.split()[3] == "0A"}
    assert not inodes & listening
