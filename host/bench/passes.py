"""What is done with a variant before its timed blocks: check, memory, and operators if wanted."""

from __future__ import annotations

from pathlib import Path

from host import op_profile
from host.bench.device import DeviceRunner
from host.bench.plan import Conditions, check_segment, footprint_segment, profile_segment
from host.devices import DeviceSession
from host.errors import ToolchainError


def run_passes(
    runner: DeviceRunner,
    device: DeviceSession,
    run_id: str,
    artifact_sha256: str,
    under: Conditions,
    folder: Path,
    *,
    per_op: bool,
) -> None:
    """Failures are in the runner's `failures`. A profile that only the SDK's viewer can read is
    kept in `folder`, where the report will lie, and read by it where the SDK is at hand."""
    passes = [check_segment, footprint_segment, *([profile_segment] if per_op else [])]
    runner.run([one(run_id, artifact_sha256, under) for one in passes])
    file = runner.profile_files.get(run_id)
    if file is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_id}-profile{Path(file).suffix}"
    path.write_bytes(device.client.fetch(file))
    if not op_profile.can_read():
        runner.note(
            run_id,
            f"Times per operator: {path.name} beside the report, for qnn-profile-viewer of the "
            "QAIRT SDK.",
        )
        return
    try:
        runner.store_profile(run_id, *op_profile.read_log(path))
    except ToolchainError as error:
        runner.note(run_id, f"No times per operator: {error} The log is {path.name}.")
