"""The stand-in of qnn-net-run on an emulated device: the tool's files, our goldens."""

import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from host.adb import AdbDevice, AdbServer
from host.emulate import EmulatedPhone

FOLDER = PurePosixPath("/data/local/tmp/net")
COMMON = (
    f"cd {FOLDER} && qnn-net-run --retrieve_context context.bin --backend libQnnHtp.so "
    "--input_list list.txt --output_dir out --use_native_input_files --use_native_output_files "
    "--perf_profile burst"
)


@pytest.fixture(scope="module")
def device(adb_server: AdbServer) -> Iterator[AdbDevice]:
    with EmulatedPhone("sm8650") as phone:
        if not phone.sandboxed:
            pytest.skip("this kernel allows no sandbox")
        adb_server.connect(phone.serial)
        device = AdbDevice(phone.serial, "device", server=adb_server)
        device.wait_ready(10)
        yield device


@pytest.fixture
def pushed(device: AdbDevice, artifact_files: dict[str, bytes], tmp_path: Path) -> list[bytes]:
    """Context and inputs on the device; the golden outputs."""
    goldens = []
    for name in ("context.onnx", "context.bin"):
        (tmp_path / name).write_bytes(artifact_files[f"contexts/sm8650/{name}"])
    for i in range(2):
        with np.load(io.BytesIO(artifact_files[f"golden/sm8650/{i}.npz"])) as golden:
            (tmp_path / f"x{i}.raw").write_bytes(golden["input/x"].tobytes())
            goldens.append(golden["output/y"].tobytes())
    (tmp_path / "list.txt").write_text("x:=x0.raw\nx:=x1.raw\n")
    (tmp_path / "short.raw").write_bytes(b"1234")
    device.check(f"rm -rf {FOLDER}; mkdir -p {FOLDER}")
    device.push(tmp_path, FOLDER)
    return goldens


def test_outputs_are_the_goldens_and_the_metadata_is_stamped(
    device: AdbDevice, pushed: list[bytes], tmp_path: Path
) -> None:
    device.check(f"{COMMON} --num_inferences 3", timeout=120)
    device.pull(FOLDER / "out", tmp_path / "pulled")
    for index in range(3):
        assert (tmp_path / f"pulled/Result_{index}/y.raw").read_bytes() == pushed[index % 2]
    metadata = (tmp_path / "pulled/execution_metadata.yaml").read_text()
    assert metadata.startswith("emulated: true") and "inferences_completed: 3" in metadata
    device.check(f"{COMMON} --num_inferences 5 --keep_num_outputs 1", timeout=120)
    assert device.check(f"ls {FOLDER}/out").split() == ["Result_0", "execution_metadata.yaml"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("list.txt", "nosuch.txt"), "nosuch.txt"),
        (("libQnnHtp.so", "libQnnCpu.so"), "only libQnnHtp.so is emulated"),
        (("context.bin", "other.bin"), "no file other.bin"),
        (("burst", "burst --duration 3"), "tells no time"),
        (("burst", "warp"), "invalid choice"),
    ],
)
def test_what_it_cannot_do_it_refuses(
    device: AdbDevice, pushed: list[bytes], change: tuple[str, str], words: str
) -> None:
    done = device.shell(COMMON.replace(*change), timeout=60)
    assert done.code in (1, 2) and words in done.stderr, done.stderr
    assert device.shell(f"ls {FOLDER}/out").code != 0


def test_an_input_of_the_wrong_size_is_named(device: AdbDevice, pushed: list[bytes]) -> None:
    device.check(f"echo x:=short.raw > {FOLDER}/list.txt")
    done = device.shell(COMMON, timeout=60)
    assert done.code == 1 and "short.raw has 4 bytes, x needs 256" in done.stderr
