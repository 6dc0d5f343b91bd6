"""The emulated device against the real adb binary, in the sandbox and with the command table."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from host.adb import AdbDevice, AdbServer, binary
from host.attached import identify
from host.emulate import EmulatedPhone


@pytest.fixture(scope="module", params=[True, False], ids=["sandbox", "table"])
def phone(request: pytest.FixtureRequest) -> Iterator[EmulatedPhone]:
    with EmulatedPhone("sm8650", sandbox=request.param) as phone:
        if request.param and not phone.sandboxed:
            pytest.skip("this kernel allows no sandbox")
        yield phone


@pytest.fixture
def device(adb_server: AdbServer, phone: EmulatedPhone) -> AdbDevice:
    adb_server.connect(phone.serial)
    device = AdbDevice(phone.serial, "device", server=adb_server)
    device.wait_ready(10)
    return device


@pytest.fixture
def sandboxed(phone: EmulatedPhone) -> None:
    if not phone.sandboxed:
        pytest.skip("real processes run in the sandbox only")


def test_the_device_says_that_it_is_emulated(device: AdbDevice) -> None:
    found = identify(device)
    assert (found.soc, found.emulated, found.model) == ("sm8650", True, "SM8650 emulated")
    assert device.getprop("ro.qhost.emulated") == "1"
    assert device.getprop("ro.board.platform") == "pineapple"


def test_shell_keeps_streams_and_return_code_apart(device: AdbDevice) -> None:
    done = device.shell("echo out; cat /no/such; echo more")
    assert done.code == 0
    assert done.stdout == "out\nmore\n"
    assert "No such file" in done.stderr
    assert device.shell("cat /no/such").code == 1
    assert device.shell("no-such-command").code == 127


def test_dumpsys_tells_battery_and_heat(device: AdbDevice) -> None:
    battery = device.check("dumpsys battery")
    assert "  level: 82\n" in battery and "  status: 3\n" in battery
    assert "Thermal Status: 0" in device.check("dumpsys thermalservice")
    assert device.shell("dumpsys powerstats").code == 1
    assert device.check("cat /sys/devices/soc0/soc_id").strip() == "557"


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_001])
def test_push_and_pull_keep_every_byte(device: AdbDevice, tmp_path: Path, size: int) -> None:
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(bytes(i * 7 % 251 for i in range(size)))
    local.chmod(0o600)
    remote = PurePosixPath("/data/local/tmp/new/folder/file")
    device.push(local, remote)
    device.pull(remote, back)
    assert back.read_bytes() == local.read_bytes()
    assert device.server.run("shell", "ls", str(remote), serial=device.serial)[0] == 0


def test_a_pushed_folder_arrives_whole(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/a").write_text("1")
    (tmp_path / "tree/deep/b").write_text("2")
    device.push(tmp_path / "tree", PurePosixPath("/data/local/tmp/tree"))
    assert device.check("cat /data/local/tmp/tree/a /data/local/tmp/tree/deep/b") == "12"
    assert device.check("ls /data/local/tmp/tree").split() == ["a", "deep"]


@pytest.mark.parametrize(
    "name",
    [
        "/data/local/tmp/../../../../../../../..{victim}",
        "../../../../../../../../..{victim}",
        "/link/victim",
    ],
)
def test_names_from_the_host_stay_inside(
    device: AdbDevice, phone: EmulatedPhone, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = phone.root / "link"
    if not link.is_symlink():
        link.symlink_to(tmp_path)
    local = tmp_path / "local"
    local.write_text("overwritten")
    device.server.run("push", str(local), name.format(victim=victim), serial=device.serial)
    device.shell(f"rm -rf {name.format(victim=victim)}")
    assert victim.read_text() == "precious"
    link.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "command",
    ["rm -rf {path}", "rm -rf /data/x {path}", "cd {path} && rm -rf ../../..", "mv {path} /data/y"],
)
def test_no_command_reaches_the_real_file_system(
    device: AdbDevice, tmp_path: Path, command: str
) -> None:
    (tmp_path / "precious").write_text("still here")
    device.shell("mkdir -p /data/x && echo 1 > /data/x/f")
    device.shell(command.format(path=tmp_path))
    assert (tmp_path / "precious").read_text() == "still here"
    assert (command != "rm -rf /data/x {path}") or device.shell("test -e /data/x").code == 1


def test_the_device_sees_no_process_and_no_file_of_the_host(
    device: AdbDevice, sandboxed: None, tmp_path: Path
) -> None:
    assert device.check("id -u").strip() == "2000"
    processes = device.check("cat /proc/[0-9]*/cmdline").replace("\0", " ")
    assert "agent.emulator.adbd" in processes and "pytest" not in processes
    assert device.shell(f"ls {tmp_path}").code != 0
    assert device.shell("touch /usr/bin/x").code != 0
    assert device.shell("unshare -Ur true; chroot / true").code != 0


def test_the_table_runs_nothing_of_the_hosts(phone: EmulatedPhone, device: AdbDevice) -> None:
    if phone.sandboxed:
        pytest.skip("about the command table")
    assert device.shell("python3 -c 'print(1)'").code == 127
    assert device.shell("/bin/sh -c true").code == 127
    assert device.shell("sleep 1 &").code == 126
    assert device.shell("echo $(id)").code == 2
    assert device.shell("echo a | cat").code == 2
    assert device.shell("cat /etc/passwd").stderr == "cat: /etc/passwd: No such file or directory\n"


def test_standard_input_and_large_output(device: AdbDevice, sandboxed: None) -> None:
    done = subprocess.run(
        [binary(), "-P", str(device.server.port), "-s", device.serial, "shell", "wc", "-c"],
        input=b"x" * 300_000, capture_output=True, timeout=20,
    )  # fmt: skip
    assert done.stdout.strip() == b"300000"
    assert len(device.check("head -c 2500000 /dev/zero | tr '\\0' a")) == 2_500_000


def test_a_terminal_is_a_terminal(device: AdbDevice, sandboxed: None) -> None:
    command = [binary(), "-P", str(device.server.port), "-s", device.serial, "shell", "-tt"]
    done = subprocess.run(
        [*command, "test -t 0 && echo yes"], input=b"", capture_output=True, timeout=20
    )
    assert done.stdout.strip() == b"yes"


def test_detached_processes_outlive_their_shell(device: AdbDevice, sandboxed: None) -> None:
    pid = device.check("setsid sleep 60 < /dev/null > /dev/null 2>&1 & echo $!").strip()
    assert device.shell(f"kill -0 {pid}").code == 0
    device.check(f"kill {pid}")


ECHO = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0echo'); s.listen();"
    "c, _ = s.accept(); c.sendall(c.recv(100).upper())"
)


def test_forward_reaches_an_abstract_socket_of_this_device_alone(
    device: AdbDevice, sandboxed: None
) -> None:
    device.check(f'setsid $(getprop ro.qhost.python) -c "{ECHO}" < /dev/null > /dev/null 2>&1 &')
    port = device.forward("localabstract:echo")
    deadline = time.monotonic() + 10
    answer = b""
    while not answer and time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"hello")
            answer = connection.recv(100)
    assert answer == b"HELLO"
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as outside:
        outside.connect("\0echo")
    assert len(device.check("cat /proc/net/tcp /proc/net/tcp6").splitlines()) == 2  # headers
    device.remove_forward(port)


def test_reverse_reaches_the_host(device: AdbDevice, sandboxed: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, chosen = device.server.run("reverse", "tcp:0", f"tcp:{port}", serial=device.serial)
        assert code == 0
        device.check(
            "$(getprop ro.qhost.python) -c 'import socket;"
            f'socket.create_connection(("127.0.0.1", {int(chosen)})).sendall(b"from inside")\''
        )
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b"from inside"
    listing = device.server.run("reverse", "--list", serial=device.serial)[1]
    assert f"tcp:{int(chosen)} tcp:{port}" in listing


def test_eight_hosts_at_once(device: AdbDevice) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda i: device.check(f"echo {i}"), range(32)))
    assert outputs == [f"{i}\n" for i in range(32)]
