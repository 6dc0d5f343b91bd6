"""A context that is newer than the device's runtime is refused before it is sent there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from host.bench import run as bench_run
from host.bench.prepare import ModelInput
from host.cli.bench import resolve_bench
from host.devices import LocalEmulator, Target
from host.errors import FailureClass
from host.samples import default_sample

OLDER = "2.31.0.250130151446"


class Events:
    """BenchEvents of nobody."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *what: None


def test_a_bench_says_both_versions_and_sends_nothing(tmp_path, monkeypatch):
    sent = []

    def open_older(target: Target, *, time_factor: float | None = None) -> LocalEmulator:
        """The emulated device, if its runtime were an older one."""
        device = LocalEmulator(target.emulated_soc)
        assert device.info.fingerprint["qairt"].startswith("2.")
        device.info = replace(device.info, fingerprint={**device.info.fingerprint, "qairt": OLDER})
        monkeypatch.setattr(device, "put", sent.append)
        return device

    monkeypatch.setattr(bench_run, "open_device", open_older)
    sample = default_sample()
    config = resolve_bench(
        {
            "device": "emulated:sm8650", "methods": "int8", "emulator_samples": 1,
            "db_path": tmp_path / "db", "cache_dir": tmp_path / "cache",
        },
        (ModelInput(sample.model_path, sample.task_path),), resume=False, input_shapes=[],
    )  # fmt: skip
    outcome = bench_run.run_bench(config, Events())
    ((kind, message),) = outcome.failures.values()
    assert kind is FailureClass.USER_ERROR and not sent
    assert f"is {OLDER}: it cannot load what a newer one made" in message
    assert "The context was compiled by QAIRT 2." in message and "\n" not in message


@pytest.mark.parametrize(
    ("os", "emulated", "compiler"),
    [("android", False, "qairt"), ("android", True, "ort"), ("linux", False, "ort")],
)
def test_only_a_real_android_device_needs_the_sdks_compiler(os, emulated, compiler):
    from quant.figures import Provenance

    with LocalEmulator("sm8650") as device:
        provenance = Provenance.EMULATED_DEVICE if emulated else Provenance.MEASURED
        info = replace(device.info, os=os, provenance=provenance)
    assert info.compiler == compiler
