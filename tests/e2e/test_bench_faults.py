"""A bench that is shot at: agents, hosts and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import duckdb

METHODS = ("--methods", "fp16,int8,int4", "--time-factor", "20")
GONE_WITHIN_S = 20.0


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Lines of stderr up to the first that holds `text`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} never came:\n{''.join(lines)}")


def wait_until_gone(lab) -> dict[int, str]:
    """Processes of the lab that are still there after a patient while."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := lab.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def rows(lab, sql: str):
    with duckdb.connect(str(lab.folder / "qhost-mock.duckdb"), read_only=True) as db:
        return db.execute(sql).fetchall()


def test_a_killed_agent_fails_one_job_and_the_others_finish(built_lab):
    lab = built_lab
    process = lab.start(*lab.bench_args(*METHODS))
    read_until(process, "block 1 of 6 measured")
    (agent,) = [
        pid for pid, line in lab.processes().items() if "-m agent" in line and "--emulate" in line
    ][:1]
    os.kill(agent, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    found = rows(lab, "SELECT status, failure_class, message FROM all_results ORDER BY run_id")
    failed = [r for r in found if r[0] == "failed"]
    assert len(found) == 3
    assert len(failed) == 1
    assert failed[0][1] == "DEVICE_ERROR"
    assert "killed by signal 9" in failed[0][2]
    assert rows(lab, "SELECT count(*) FROM quantization_results") == [(2,)]
    blocks = rows(
        lab,
        "SELECT count(*) FROM blocks JOIN runs USING (run_id) WHERE status='ok' GROUP BY run_id",
    )
    assert blocks == [(6,), (6,)]
    overlaps = rows(
        lab,
        "SELECT count(*) FROM blocks a JOIN blocks b ON a.run_id = b.run_id "
        "AND a.block_index < b.block_index AND a.t_first_ns < b.t_last_ns "
        "AND b.t_first_ns < a.t_last_ns",
    )
    assert overlaps == [(0,)], "the restarted device's clock must not fall into earlier blocks"
    assert wait_until_gone(lab) == {}


def test_a_killed_host_leaves_a_whole_database_and_resume_does_the_rest(built_lab):
    lab = built_lab
    process = lab.start(*lab.bench_args(*METHODS))
    read_until(process, "block 2 of 6 measured")
    process.kill()
    process.communicate(timeout=60)
    assert wait_until_gone(lab) == {}
    stored = dict(rows(lab, "SELECT run_id || '/' || block_index, t_first_ns FROM blocks"))
    assert stored
    assert rows(lab, "SELECT DISTINCT status, failure_class FROM runs") == [("failed", "KILLED")]
    assert rows(lab, "SELECT count(*) FROM quantization_results") == [(0,)]
    assert rows(lab, "SELECT count(*) FROM figures WHERE metric = 'accuracy'")[0][0] >= 6

    done = lab.run(*lab.bench_args(*METHODS, "--resume"))
    assert done.returncode == 0, done.stderr
    after = rows(lab, "SELECT run_id || '/' || block_index, t_first_ns FROM blocks")
    assert len(after) == 18
    assert stored.items() <= dict(after).items(), "stored blocks are kept, not run again"
    assert rows(lab, "SELECT count(*) FROM sessions") == [(1,)]
    assert rows(lab, "SELECT count(*) FROM quantization_results") == [(3,)]

    again = lab.run(*lab.bench_args(*METHODS, "--resume"))
    assert again.returncode == 0, again.stderr
    assert len(rows(lab, "SELECT * FROM blocks")) == 18


def test_ctrl_c_ends_everything_with_130(lab):
    process = lab.start(*lab.bench_args(*METHODS))
    read_until(process, "fp16: built")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert wait_until_gone(lab) == {}
    assert rows(lab, "SELECT DISTINCT status FROM runs") == [("failed",)]


def test_resume_without_anything_to_resume_says_so(lab):
    done = lab.run(*lab.bench_args(*METHODS, "--resume"))
    assert done.returncode == 1
    assert "Nothing to resume" in done.stderr
    assert "Traceback" not in done.stderr
