"""What a bench writes down before it measures: the planned runs, or why there is no device."""

from __future__ import annotations

import json

from host import __version__
from host.bench.plan import JobVariant, get_profile, new_run_ids
from host.bench.prepare import BenchConfig, Prepared, session_fingerprint
from host.devices import DeviceInfo
from host.errors import DeviceError, RunStatus
from host.store import Store, new_session_id
from host.store.rows import RunRow, SessionRow


def open_store(config: BenchConfig) -> Store:
    """The database of the bench, made where there is none."""
    config.db_path.parent.mkdir(parents=True, exist_ok=True)
    return Store.open(config.db_path, create=True)


def record_unopened(
    config: BenchConfig, prepared: tuple[Prepared, ...], error: DeviceError
) -> None:
    """A device that is there but cannot be used: every job is a failed row, for whoever reads the
    database of an unattended lab later."""
    target = config.target
    profile = get_profile(config.profile, emulated=target.emulated)
    session = SessionRow(
        new_session_id(),
        session_fingerprint(config, prepared, profile.name),
        target.emulated,
        profile.name,
        config.seed,
        command=config.command,
        host_version=__version__,
    )
    device = target.serial or target.soc or target.emulated_soc or "unknown"
    with open_store(config) as store:
        # No figure comes of it, so it cannot mix with anything.
        store.new_session(session, allow_mixed=True)
        jobs = [(p, v) for p in prepared for v in p.variants]
        for run_id, (p, variant) in zip(new_run_ids(session.session_id), jobs, strict=False):
            store.add_run(
                run_row(config, session.session_id, run_id, p, variant, profile.name, device)
            )
            store.finish_run(
                run_id,
                RunStatus.FAILED,
                failure_class=error.failure_class,
                message=f"The device could not be opened: {error.message}",
            )
        store.finish_session(session.session_id)


def run_row(
    config: BenchConfig,
    session_id: str,
    run_id: str,
    p: Prepared,
    variant: JobVariant,
    profile: str,
    device: str,
    info: DeviceInfo | None = None,
) -> RunRow:
    """A planned run; `device` names it where there is no description of it."""
    identity = p.identity
    return RunRow(
        run_id,
        session_id,
        identity.name,
        identity.model_type,
        identity.fingerprint,
        identity.task_fingerprint,
        info.soc if info else config.target.soc or config.target.emulated_soc,
        info.label if info else device,
        info.serial if info else config.target.serial,
        "+".join(variant.methods),
        variant.canonical,
        profile,
        perf_profile=config.perf_profile or p.perf_profile,
        seed=config.seed,
        options_json=variant.options_json,
        accuracy_metric=identity.metric,
        accuracy_higher_is_better=identity.higher_is_better,
        notes_json=json.dumps(identity.notes),
        fingerprint_json=json.dumps(info.fingerprint if info else {}),
    )
