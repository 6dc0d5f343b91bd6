"""What is done with a variant before its timed blocks: check, memory, and operators if wanted."""

from __future__ import annotations

from pathlib import Path

from host.bench.device import DeviceRunner
from host.bench.plan import Conditions, check_segment, footprint_segment, profile_segment
from host.devices import DeviceSession


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
    kept in `folder`, where the report will lie."""
    passes = [check_segment, footprint_segment, *([profile_segment] if per_op else [])]
    runner.run([one(run_id, artifact_sha256, under) for one in passes])
    file = runner.profile_files.get(run_id)
    if file is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_id}-profile{Path(file).suffix}"
    path.write_bytes(device.client.fetch(file))
    runner.note(
        run_id,
        f"Times per operator: {path.name} beside the report, for qnn-profile-viewer of the "
        "QAIRT SDK.",
    )
