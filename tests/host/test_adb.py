"""What the user is told when adb fails. The fake is the adb server's wire, and nothing above it."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from host import adb
from host.adb import AdbDevice, AdbServer, explain
from host.attached import find_device, list_devices
from host.emulate import EmulatedPhone
from host.errors import DeviceError, FailureClass


class FakeServer:
    """Answers host: requests from a table; a request that is not in it gets FAIL."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(int(connection.recv(4), 16)).decode()
                answer = self.answers.get(request)
                text = (
                    answer if answer is not None else f"unknown host service {request}"
                ).encode()
                connection.sendall(b"FAIL" if answer is None else b"OKAY")
                connection.sendall(b"%04x" % len(text) + text)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer({"host:version": f"{adb._binary_version():04x}"})
    yield server
    server.close()


NO_PERMISSIONS = (
    "0123456789ABCDEF       no permissions (missing udev rules? user is in the plugdev group); "
    "see [http://developer.android.com/tools/device.html] usb:1-1 transport_id:3\n"
)


@pytest.mark.parametrize(
    ("line", "state", "message", "hint"),
    [
        (NO_PERMISSIONS, "no permissions", "may not open the USB node", "plugdev"),
        ("R5  unauthorized usb:1-2 transport_id:1\n", "unauthorized", "does not trust", "accept"),
        ("R5  offline usb:1-2 transport_id:1\n", "offline", "is offline", "Plug it in again"),
    ],
)
def test_an_unusable_device_is_one_line_with_what_to_do(
    fake: FakeServer, line: str, state: str, message: str, hint: str
) -> None:
    fake.answers["host:devices-l"] = line
    (device,) = list_devices(AdbServer(fake.port))
    assert device.serial == line.split()[0]
    assert device.state.startswith(state)
    with pytest.raises(DeviceError) as caught:
        find_device("", AdbServer(fake.port))
    assert message in caught.value.message and hint in caught.value.hint
    assert line.split()[0] in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint


def test_a_server_of_another_version_is_left_alone(fake: FakeServer) -> None:
    fake.answers["host:version"] = "0020"
    with pytest.raises(DeviceError) as caught:
        list_devices(AdbServer(fake.port))
    assert "version 32" in caught.value.message
    assert f"version {adb._binary_version()}" in caught.value.message
    assert "ANDROID_ADB_SERVER_PORT" in caught.value.hint
    assert AdbServer(fake.port).query("host:version") == "0020"  # it still runs


def test_a_port_of_another_program_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(DeviceError, match=r"is no adb server: .*HTTP") as caught:
            list_devices(AdbServer(listener.getsockname()[1]))
    assert "ANDROID_ADB_SERVER_PORT" in caught.value.hint


def test_an_unplugged_device_is_transient(fake: FakeServer) -> None:
    fake.answers["host:devices-l"] = "OTHER  device product:x model:y\n"
    with pytest.raises(DeviceError) as caught:
        AdbDevice("GONE", "device", server=AdbServer(fake.port)).shell("true")
    assert caught.value.transient
    assert "GONE is not connected" in caught.value.message
    with pytest.raises(DeviceError, match="No device GONE"):
        find_device("GONE", AdbServer(fake.port))


def test_a_silent_server_is_a_timeout_and_not_a_hang() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(DeviceError) as caught:
            AdbServer(listener.getsockname()[1]).shell("S", "true", timeout=0.3)
    assert caught.value.failure_class is FailureClass.TIMEOUT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adb: error: failed to copy 'a' to 'b': remote No space left on device", "No space is"),
        ("adb: device 'X' not found", "X is not connected"),
        ("error: device unauthorized.", "does not trust"),
        ("error: device offline", "is offline"),
        ("adb: error: ... Read-only file system", "does not allow it"),
        ("", "adb lost X"),
    ],
)
def test_what_adb_prints_is_explained(text: str, expected: str) -> None:
    error = explain("X", text)
    assert expected in error.message and error.hint


def test_the_error_counts_and_not_the_summary_behind_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A small file is on its way as a whole before the device says no."""
    tool = tmp_path / "adb"
    tool.write_text(
        '#!/bin/sh\necho "adb: error: failed to copy: remote No space left on device"\n'
        "echo 'big: 1 file pushed, 0 skipped. 685.9 MB/s'\nexit 1\n"
    )
    tool.chmod(0o755)
    monkeypatch.setattr(adb, "binary", lambda: str(tool))
    with pytest.raises(DeviceError, match="No space is left on X"):
        AdbDevice("X", "device").push(tool, PurePosixPath("/data/local/tmp/a"))


@pytest.fixture(scope="module")
def server() -> Iterator[AdbServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    server = AdbServer(port)
    server.ensure()
    yield server
    server.kill()


def test_faults_of_a_device_as_the_real_adb_reports_them(server: AdbServer, tmp_path) -> None:
    with EmulatedPhone("sm8650", data_mb=8) as phone:
        server.connect(phone.serial)
        device = AdbDevice(phone.serial, "device", server=server)
        device.wait_ready(10)
        big = tmp_path / "big"
        big.write_bytes(bytes(3_000_000))
        remote = PurePosixPath("/data/local/tmp/big")

        phone.fault("refuse-push:byte=1000000")
        device.check("true")
        with pytest.raises(DeviceError):
            device.push(big, remote)
        assert device.shell(f"test -e {remote}").code == 1  # nothing half-written
        device.push(big, remote)
        assert device.check(f"cat {remote} | wc -c").strip() == "3000000"

        phone.fault("full-disk:free=100000")
        with pytest.raises(DeviceError, match=r"No space is left") as caught:
            for _ in range(20):  # the fault strikes as soon as the device has read it
                device.push(big, PurePosixPath("/data/local/tmp/more"))
        assert "agent remove" in caught.value.hint

        phone.fault("reboot:for=0.2")
        for _ in range(100):
            try:
                device.shell("sleep 0.1", timeout=5)
            except DeviceError:
                break
        device.wait_ready(20)
        assert device.check("getprop sys.boot_completed").strip() == "1"

        phone.fault("unauthorized")
        with pytest.raises(DeviceError, match="does not trust this computer"):
            for _ in range(50):
                device.wait_ready(5)
        server.disconnect(phone.serial)


def test_two_phones_do_not_share_a_file_or_a_socket(server: AdbServer) -> None:
    with EmulatedPhone("sm8650") as one, EmulatedPhone("sm8550") as two:
        server.connect(one.serial)
        server.connect(two.serial)
        devices = {d.soc: d for d in list_devices(server)}
        assert set(devices) >= {"sm8650", "sm8550"}
        devices["sm8650"].check("echo 1 > /data/local/tmp/mine")
        assert devices["sm8550"].shell("ls /data/local/tmp/mine").code != 0
        assert find_device("sm8550", server).serial == two.serial
        for phone in (one, two):
            server.disconnect(phone.serial)
