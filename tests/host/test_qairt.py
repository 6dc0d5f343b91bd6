"""What an Android device gets of a QAIRT SDK, and the one line for each way it can be wrong."""

from __future__ import annotations

import json
import tarfile

import pytest

from host import qairt
from host.errors import UserError

BUILD = "2.51.0.260929181845"
OLDER = "2.31.0.250130151446"


@pytest.fixture
def sdk(make_sdk, tmp_path):
    return make_sdk(tmp_path / "sdk")


def test_a_device_gets_the_tools_and_the_libraries_of_its_own_hexagon(sdk, tmp_path):
    layer = qairt.runtime_layer(sdk, 75, tmp_path, emulated=True)
    assert layer.name == "qnn-v75"
    with tarfile.open(layer.archive) as archive:
        modes = {member.name: member.mode for member in archive.getmembers()}
        said = json.load(archive.extractfile("qairt.json"))
    assert modes == {
        "qnn-net-run": 0o755, "qnn-throughput-net-run": 0o755, "libQnnHtp.so": 0o644,
        "libQnnSystem.so": 0o644, "libQnnHtpNetRunExtensions.so": 0o644,
        "libQnnHtpV75Stub.so": 0o644, "libQnnHtpV75Skel.so": 0o644, "qairt.json": 0o644,
    }  # fmt: skip
    assert said == {"build": BUILD, "htp_arch": 75}
    again = qairt.runtime_layer(sdk, 75, tmp_path, emulated=False)
    assert again.sha256 == layer.sha256
    assert qairt.runtime_layer(sdk, 79, tmp_path, emulated=True).sha256 != layer.sha256


@pytest.mark.parametrize(
    "path",
    [
        "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so",
        "lib/aarch64-android/libQnnHtpV75Stub.so",
        "lib/aarch64-android/libQnnHtpNetRunExtensions.so",
        "bin/aarch64-android/qnn-throughput-net-run",
    ],
)
def test_a_missing_file_is_named(sdk, tmp_path, path):
    (sdk / path).unlink()
    with pytest.raises(UserError, match=rf"lacks {path}") as caught:
        qairt.runtime_layer(sdk, 75, tmp_path, emulated=True)
    assert ("It knows no Hexagon v75" in caught.value.message) == ("V75" in path)


def test_a_mixed_sdk_is_refused_with_both_builds(sdk, make_sdk, tmp_path):
    other = make_sdk(tmp_path / "other", OLDER)
    skel = "lib/hexagon-v75/unsigned/libQnnHtpV75Skel.so"
    (sdk / skel).write_bytes((other / skel).read_bytes())
    with pytest.raises(UserError, match="is mixed") as caught:
        qairt.runtime_layer(sdk, 75, tmp_path, emulated=True)
    assert BUILD in caught.value.message and OLDER in caught.value.message
    # Of the Hexagons that are not this device's, nothing is asked.
    assert qairt.runtime_layer(sdk, 79, tmp_path, emulated=True).name == "qnn-v79"


def test_libraries_of_another_version_than_the_sdk_says(sdk, tmp_path):
    (sdk / "sdk.yaml").write_text(f"version: '{OLDER}'\n")
    with pytest.raises(UserError, match=r"says 2\.31\.0\.250130151446 in sdk.yaml, its lib"):
        qairt.runtime_layer(sdk, 75, tmp_path, emulated=True)


def test_libraries_that_say_no_build(sdk, tmp_path):
    for path in sdk.rglob("*.so"):
        path.write_bytes(b"\x7fELF")
    with pytest.raises(UserError, match="says of which build it is"):
        qairt.runtime_layer(sdk, 75, tmp_path, emulated=True)


def test_android_programs_are_not_for_an_emulated_device(sdk, tmp_path):
    (sdk / "bin/aarch64-android/qnn-net-run").write_bytes(b"\x7fELF program")
    with pytest.raises(UserError, match="cannot run the Android programs"):
        qairt.runtime_layer(sdk, 75, tmp_path, emulated=True)
    assert qairt.runtime_layer(sdk, 75, tmp_path, emulated=False).name == "qnn-v75"


@pytest.mark.parametrize(
    ("value", "words"), [(None, "QAIRT_SDK_ROOT is not set"), ("/nosuch", "is no folder")]
)
def test_an_sdk_that_is_not_there(monkeypatch, value, words):
    monkeypatch.delenv("QAIRT_SDK_ROOT", raising=False)
    if value:
        monkeypatch.setenv("QAIRT_SDK_ROOT", value)
    with pytest.raises(UserError, match=words):
        qairt.sdk_root()


@pytest.mark.parametrize(
    ("context", "runtime", "refused"),
    [
        ("v2.51.0.260929181845", OLDER, True),
        ("v2.31.1.250301000000_1", OLDER, True),
        ("v2.31.0.250130151446_114721", OLDER, False),
        ("v2.9.0.1", OLDER, False),
        ("", OLDER, False),
        ("v2.51.0.1", "", False),
    ],
)
def test_a_context_newer_than_the_devices_runtime(context, runtime, refused):
    if not refused:
        qairt.require_runnable(context, runtime, "R5C")
        return
    with pytest.raises(UserError) as caught:
        qairt.require_runnable(context, runtime, "R5C")
    assert context.removeprefix("v") in caught.value.message and OLDER in caught.value.message
