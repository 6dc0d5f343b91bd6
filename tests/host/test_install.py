"""Which layers a device gets and how its agent is started from them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from host import bundle, install, qairt
from host.adb import AdbDevice
from host.attached import identify
from host.emulate import EmulatedPhone
from host.errors import UserError
from host.layers import Layer, Member, pack


def fake_bundle(cache: Path, target: str, names: tuple[str, ...]) -> bundle.Bundle:
    """A bundle of the right shape with next to nothing in its layers."""
    folder = bundle.default_folder(cache, target)
    folder.mkdir(parents=True)
    rows = []
    for name in names:
        layer = pack(name, [Member("file", name.encode())], folder)
        rows.append({
            "name": name, "sha256": layer.sha256, "archive": layer.archive.name,
            "bytes": 1, "unpacked_bytes": 4,
        })  # fmt: skip
    said = {"format": 1, "target": target, "python": "3.11", "layers": rows, "components": []}
    (folder / bundle.MANIFEST).write_text(json.dumps(said))
    return bundle.open_bundle(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QHOST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("QAIRT_SDK_ROOT", raising=False)
    return tmp_path / "cache"


PHONE = AdbDevice("R5C", "device", soc="sm8650")
BOARD = AdbDevice("RB3", "device", soc="qcs6490", android=False)


def names(layers: tuple[Layer, ...]) -> list[str]:
    return [layer.name for layer in layers]


def test_a_phone_gets_the_sdks_libraries_of_its_hexagon(cache, make_sdk, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"R5C needs an agent bundle, and none is built"):
        install.layers_for(PHONE, tmp_path)
    fake_bundle(cache, "android-aarch64", ("base", "grpc", "numpy"))
    with pytest.raises(UserError, match="QAIRT_SDK_ROOT is not set"):
        install.layers_for(PHONE, tmp_path)
    monkeypatch.setenv("QAIRT_SDK_ROOT", str(make_sdk(tmp_path / "sdk")))
    layers = install.layers_for(PHONE, tmp_path)
    assert names(layers) == ["base", "grpc", "numpy", "qnn-v75", "agent"]
    environment, python, options = install.how_to_start(PHONE, layers)
    by_name = {layer.name: str(layer.directory) for layer in layers}
    assert python == f"sh {by_name['base']}/run"
    assert options == f"--net-run {by_name['qnn-v75']}"
    words = dict(word.split("=", 1) for word in shlex.split(environment))
    assert words["PYTHONPATH"].split(":") == [by_name[n] for n in ("grpc", "numpy", "agent")]
    assert set(words) == {"PYTHONPATH", "PYTHONPYCACHEPREFIX"}


def test_a_board_gets_those_of_onnxruntime_qnn(cache, tmp_path):
    fake_bundle(
        cache, "linux-aarch64", ("base", "grpc", "numpy", "ort", "qnn-v68", "qnn-v73", "qnn-v75")
    )
    layers = install.layers_for(BOARD, tmp_path)
    assert names(layers) == ["base", "grpc", "numpy", "ort", "qnn-v68", "agent"]
    environment, python, options = install.how_to_start(BOARD, layers)
    by_name = {layer.name: str(layer.directory) for layer in layers}
    words = dict(word.split("=", 1) for word in shlex.split(environment))
    assert python == f"sh {by_name['base']}/run" and options == ""
    assert words["PYTHONPATH"].split(":") == [by_name[n] for n in ("grpc", "numpy", "ort", "agent")]
    assert words["QHOST_LIBRARY_PATH"] == f"{by_name['qnn-v68']}:{by_name['ort']}/onnxruntime_qnn"
    assert words["ADSP_LIBRARY_PATH"].startswith(f"{by_name['qnn-v68']};/")


def test_another_sdk_or_other_code_is_another_agent(cache, make_sdk, tmp_path):
    one = qairt.runtime_layer(make_sdk(tmp_path / "a"), 75, tmp_path, emulated=True)
    other = qairt.runtime_layer(
        make_sdk(tmp_path / "b", "2.31.0.250130151446"), 75, tmp_path, emulated=True
    )
    code = pack("agent", [Member("x", b"1")], tmp_path)
    same = install.identity([one, code])
    assert same == install.identity([one, code])
    assert len({same, install.identity([other, code]), install.identity([one])}) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "is of another version of qhost"),
        ({"layers": [{"name": "base"}]}, "There is no agent bundle in"),
    ],
)
def test_a_bundle_that_is_none(cache, change, words):
    folder = bundle.default_folder(cache, "android-aarch64")
    fake_bundle(cache, "android-aarch64", ("base",))
    said = json.loads((folder / bundle.MANIFEST).read_text())
    (folder / bundle.MANIFEST).write_text(json.dumps({**said, **change}))
    with pytest.raises(UserError, match=words):
        bundle.open_bundle(folder)


def test_a_bundle_that_lacks_a_layer_names_it(cache):
    built = fake_bundle(cache, "android-aarch64", ("base", "grpc"))
    built.layer("grpc").archive.unlink()
    with pytest.raises(UserError, match=r"lacks grpc-[0-9a-f]{64}\.tar\.gz"):
        bundle.open_bundle(bundle.default_folder(cache, "android-aarch64"))


def test_a_device_without_properties_is_a_board(adb_server):
    """As a Linux board's adbd shows itself: no getprop, its files say what it is."""
    with EmulatedPhone("sm8550") as phone:
        if not phone.sandboxed:
            pytest.skip("this kernel allows no sandbox")
        adb_server.connect(phone.serial)
        device = AdbDevice(phone.serial, "device", server=adb_server)
        device.wait_ready(10)
        assert identify(device).android
        device.check("rm /system/bin/getprop")
        found = identify(device)
        assert not found.android and found.soc == "sm8550"
