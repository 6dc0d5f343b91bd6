"""Fetch what a device measured while its host was away, and finish the runs it belongs to.

The agent works through its queue whether or not a host listens, and keeps everything until it is
acknowledged. Batches go into the database of the session that ordered them, each exactly once:
what the host had stored before it went away is recognised by its number.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from host import deploy, install, lease
from host.adb import AdbDevice
from host.bench.plan import get_profile
from host.client import AgentBatch, AgentClient
from host.devices import DeviceInfo, describe
from host.errors import DeviceError, FailureClass, RunStatus, UserError
from host.measure import Limits, assess
from host.store import Store

POLL_S = 0.2
SILENT_LIMIT_S = 1800.0  # a large model's numerics in the HTP emulator take minutes


@dataclass
class Collected:
    """What was fetched: batches, and the runs that are finished by it with their status."""

    batches: int = 0
    runs: dict[str, RunStatus] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)  # run -> why


def collect(device: AdbDevice, db_path: Path) -> Collected:
    """Wait for the agent to finish its queue, store everything it holds, measure, stop it.

    UserError when the database does not know the session; nothing is acknowledged then.
    """
    result = Collected()
    with lease.acquire(device):
        endpoint = deploy.ensure_agent(device)
        client = AgentClient(endpoint.address, endpoint.token)
        try:
            with Store.open(db_path) as store:
                failed = _drain(client, store, endpoint.agent.stream, result)
                info = describe(client)
                for run_id in result.unfinished | failed:
                    _finish(store, info, run_id, failed.get(run_id), result)
        finally:
            client.close()
            endpoint.close()
        install.stop_agent(device, endpoint.agent, clean=True)
    return result


def discard(device: AdbDevice) -> None:
    """Stop the agent and drop what it holds."""
    with lease.acquire(device):
        endpoint = deploy.ensure_agent(device, clean=True)
        endpoint.close()
        install.stop_agent(device, endpoint.agent, clean=True)


def _drain(
    client: AgentClient, store: Store, stream: str, result: Collected
) -> dict[str, tuple[FailureClass, str]]:
    """Store and acknowledge until the agent has nothing left; the runs that failed on it."""
    failed: dict[str, tuple[FailureClass, str]] = {}
    status = client.status()
    if status.next_seq - 1 == status.acked_seq and not (status.busy or status.queued_segments):
        return failed
    subscription = client.subscribe(int(status.acked_seq) + 1)
    deadline = time.monotonic() + SILENT_LIMIT_S
    try:
        for batch in subscription:
            _require_session(store, batch)
            client.ack(store.append(batch.session_id, stream, [batch.raw]))
            result.batches += 1
            result.unfinished.setdefault(batch.raw.run_id, "not all of its blocks were run")
            end = batch.end
            if end and end.outcome != "ok":
                kind = FailureClass(end.failure_class or FailureClass.DEVICE_ERROR)
                failed.setdefault(batch.raw.run_id, (kind, end.message))
            if end:
                if _was_last(client, batch.raw.seq):
                    break
                deadline = time.monotonic() + SILENT_LIMIT_S
            elif time.monotonic() > deadline:
                raise DeviceError("The agent does not come to an end.", "See 'qhost agent logs'.")
    finally:
        subscription.cancel()
    return failed


def _was_last(client: AgentClient, seq: int) -> bool:
    """Whether nothing follows: the agent is idle, or says what it does by a next batch."""
    while True:
        status = client.status()
        if status.next_seq - 1 > seq:
            return False
        if not (status.busy or status.queued_segments):
            return True
        time.sleep(POLL_S)


def _require_session(store: Store, batch: AgentBatch) -> None:
    if all(session.session_id != batch.session_id for session in store.sessions()):
        raise UserError(
            f"{store.path} does not know the session {batch.session_id} of these results.",
            "Name its database with --db-path.",
        )


def _finish(
    store: Store,
    info: DeviceInfo,
    run_id: str,
    failure: tuple[FailureClass, str] | None,
    result: Collected,
) -> None:
    """A run whose blocks are all there is measured; one that failed on the device has failed."""
    row = store.run(run_id)
    if row.status is RunStatus.OK:
        result.unfinished.pop(run_id, None)
        return
    if failure:
        store.finish_run(run_id, RunStatus.FAILED, failure_class=failure[0], message=failure[1])
        result.runs[run_id] = RunStatus.FAILED
        result.unfinished.pop(run_id, None)
        return
    profile = get_profile(row.profile, emulated=info.emulated)
    data = store.run_data(run_id)
    if {b.block_index for b in data.blocks} != set(range(profile.blocks)):
        return
    limits = Limits(profile.min_inferences, profile.min_s, allow_throttling=profile.contiguous)
    measured = assess(data, info.provenance, limits)
    store.finish_run(
        run_id,
        measured.status,
        message=measured.message,
        figures=measured.figures,
        power_method=measured.power_method,
        power_update_hz=measured.power_update_hz,
    )
    result.runs[run_id] = measured.status
    result.unfinished.pop(run_id, None)
