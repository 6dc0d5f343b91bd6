"""Deploy, start, lease and the verbs around them, on an emulated device behind the real adb."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from host import deploy, install, lease
from host import layers as archives
from host.adb import AdbDevice, AdbServer
from host.attached import identify
from host.cli import main
from host.client import AgentClient
from host.emulate import EmulatedPhone
from host.errors import DeviceError, ExitCode
from protos import agent_pb2 as pb
from protos import agent_pb2_grpc


@pytest.fixture(scope="module")
def server() -> Iterator[AdbServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    before = os.environ.get("ANDROID_ADB_SERVER_PORT")
    os.environ["ANDROID_ADB_SERVER_PORT"] = str(port)
    os.environ["ADB_USB"] = "0"  # emulated devices alone, and no wait for USB
    server = AdbServer(port)
    server.ensure()
    yield server
    server.kill()
    os.environ.pop("ANDROID_ADB_SERVER_PORT")
    if before:
        os.environ["ANDROID_ADB_SERVER_PORT"] = before


def connected(server: AdbServer, phone: EmulatedPhone) -> AdbDevice:
    server.connect(phone.serial)
    device = AdbDevice(phone.serial, "device", server=server)
    device.wait_ready(10)
    return identify(device)


@pytest.fixture(scope="module")
def device(server: AdbServer) -> Iterator[AdbDevice]:
    with EmulatedPhone("sm8650", time_factor=20) as phone:
        yield connected(server, phone)
        server.disconnect(phone.serial)


def layer_of(folder: Path, name: str, size: int) -> archives.Layer:
    import gzip
    import hashlib
    import io
    import tarfile

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo(f"{name}.bin")
        member.size = size
        archive.addfile(member, io.BytesIO(os.urandom(size)))
    packed = gzip.compress(data.getvalue(), mtime=0)
    path = folder / f"{name}.tar.gz"
    path.write_bytes(packed)
    return archives.Layer(name, hashlib.sha256(packed).hexdigest(), path)


def test_a_second_deploy_pushes_nothing_and_a_change_only_its_layer(
    device: AdbDevice, tmp_path: Path
) -> None:
    big, agent = layer_of(tmp_path, "base", 2_000_000), archives.agent_layer(tmp_path)
    first = install.install(device, [big, agent])
    assert first.pushed == (big, agent)
    assert install.install(device, [big, agent]).pushed == ()
    changed = layer_of(tmp_path, "agent", 1000)
    second = install.install(device, [big, changed])
    assert second.pushed == (changed,) and second.pushed_bytes < 1_000_000
    assert agent.archive.stat().st_size < 1_000_000
    manifest = json.loads(device.check(f"cat {install.MANIFEST}"))
    assert manifest["layers"] == [big.directory.name, changed.directory.name]
    assert device.check(f"ls {install.INCOMING}").split() == []


def test_the_agent_layer_depends_on_the_code_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = archives.agent_layer(tmp_path / "a"), archives.agent_layer(tmp_path / "b")
    assert one.archive.read_bytes() == two.archive.read_bytes()


def test_a_damaged_layer_is_not_installed(device: AdbDevice, tmp_path: Path) -> None:
    layer = layer_of(tmp_path, "torn", 5000)
    damaged = archives.Layer(layer.name, "0" * 64, layer.archive)
    with pytest.raises(DeviceError, match="arrived damaged"):
        install.install(device, [damaged])
    assert damaged.directory.name not in device.check(f"ls {archives.LAYERS}")
    assert device.check(f"ls {install.INCOMING}").split() == []


def test_a_device_of_another_architecture_is_refused(device: AdbDevice) -> None:
    class Other(AdbDevice):
        def getprop(self, name: str) -> str:
            return "armeabi-v7a"

    other = Other(device.serial, "device", emulated=True, server=device.server)
    with pytest.raises(DeviceError, match=r"is built for armeabi-v7a, the agent for arm64"):
        deploy.deploy(other)


def test_where_room_is_short_the_longest_unused_artifacts_go(
    server: AdbServer, tmp_path: Path
) -> None:
    def put(name: str, keep: tuple[str, ...] = ()) -> bool:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "context.bin").write_bytes(os.urandom(3_000_000))
        return install.put_artifact(device, folder, name, keep)

    def held() -> set[str]:
        return set(device.check(f"ls {install.ARTIFACTS}").split())

    with EmulatedPhone("sm8650", data_mb=16) as phone:
        if not phone.sandboxed:
            pytest.skip("this kernel allows no sandbox")
        device = connected(server, phone)
        device.check(f"mkdir -p {install.ARTIFACTS}")
        for day, name in enumerate(("one", "two", "three")):
            assert put(name)
            device.check(f"touch -d 2026-01-0{day + 1}T00:00:00 {install.ARTIFACTS}/{name}")
        assert held() == {"one", "two", "three"}  # 9 of 16 MB; the next one needs 3 and 4 to spare
        assert not put("one")  # is there, and now the one used last
        assert put("four", keep=("four",))
        assert held() == {"one", "three", "four"}
        with pytest.raises(DeviceError, match="No space is left"):
            put("five", keep=("one", "three", "four", "five"))
        assert held() == {"one", "three", "four"}
        server.disconnect(phone.serial)


def test_the_agent_answers_only_to_its_token(device: AdbDevice) -> None:
    endpoint = deploy.ensure_agent(device)
    client = AgentClient(endpoint.address, endpoint.token)
    try:
        said = client.describe()
        assert said.substrate == pb.EMULATED
        assert (said.device.soc, said.device.os) == ("sm8650", "android")
        with grpc.insecure_channel(endpoint.address) as channel:
            stub = agent_pb2_grpc.AgentStub(channel)
            calls = {
                "Describe": pb.DescribeRequest(protocol_version=1),
                "Status": pb.StatusRequest(),
                "Ack": pb.AckRequest(seq=1),
                "Cancel": pb.CancelRequest(),
                "Start": pb.StartRequest(),
            }
            for name, request in calls.items():
                for token in ("", "Bearer ", "Bearer " + endpoint.token[:-1]):
                    with pytest.raises(grpc.RpcError) as caught:
                        getattr(stub, name)(
                            request, timeout=10, metadata=(("authorization", token),)
                        )
                    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                    assert caught.value.details() == ""
    finally:
        client.close()
        endpoint.close()


def test_the_token_is_on_no_command_line_and_in_no_log(device: AdbDevice) -> None:
    endpoint = deploy.ensure_agent(device)
    endpoint.close()
    token = endpoint.token
    assert len(token) >= 32
    command = device.check(f"cat /proc/{endpoint.agent.pid}/cmdline")
    assert endpoint.agent.socket in command and token not in command
    logs = device.check(f"cat {install.START_LOG} {install.AGENT_ROOT}/logs/agent.log")
    assert token not in logs
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert token.encode() not in entry.read_bytes()
        except OSError:
            continue


def test_no_tcp_port_listens_on_the_device(device: AdbDevice) -> None:
    endpoint = deploy.ensure_agent(device)
    endpoint.close()
    if device.shell("id -u").stdout.strip() != "2000":
        pytest.skip("without a sandbox the device has no network of its own")
    listening = device.check("cat /proc/net/tcp /proc/net/tcp6")
    assert [line for line in listening.splitlines() if ":" in line.split()[0]] == []
    assert f"@{endpoint.agent.socket}" in device.check("cat /proc/net/unix")
    modes = device.check(f"stat -c %a {install.TOKEN} {install.RUN}").split()
    assert modes == ["600", "700"]


def test_all_of_it_without_a_sandbox(server: AdbServer) -> None:
    with EmulatedPhone("sm8650", sandbox=False) as phone:
        device = connected(server, phone)
        with lease.acquire(device):
            endpoint = deploy.ensure_agent(device)
            client = AgentClient(endpoint.address, endpoint.token)
            assert client.describe().substrate == pb.EMULATED
            client.close()
            assert install.running_agent(device) == endpoint.agent
            assert deploy.deploy(device).pushed == ()
        assert lease.read(device) is None
        install.remove(device)
        assert device.shell(f"kill -0 {endpoint.agent.pid}").code != 0
        server.disconnect(phone.serial)


def test_deploy_start_again_finds_the_same_agent(device: AdbDevice) -> None:
    one = deploy.ensure_agent(device)
    two = deploy.ensure_agent(device)
    assert one.agent == two.agent and one.token == two.token
    fresh = deploy.ensure_agent(device, clean=True)
    assert fresh.agent.pid != one.agent.pid
    assert fresh.agent.stream != one.agent.stream and fresh.token != one.token
    assert device.shell(f"kill -0 {one.agent.pid}").code != 0
    for endpoint in (one, two, fresh):
        endpoint.close()


def test_a_killed_agent_is_not_taken_for_a_running_one(device: AdbDevice) -> None:
    endpoint = deploy.ensure_agent(device)
    device.check(f"kill -9 {endpoint.agent.pid}")
    for _ in range(50):
        if install.running_agent(device) is None:
            break
    assert install.running_agent(device) is None
    endpoint.close()


def test_personalities_reach_the_agent_and_dumpsys(server: AdbServer) -> None:
    with EmulatedPhone("sm8650", personality="phone-denied") as phone:
        device = connected(server, phone)
        assert "mName" not in device.check("dumpsys thermalservice")  # no zone can be read
        endpoint = deploy.ensure_agent(device)
        client = AgentClient(endpoint.address, endpoint.token)
        said = client.describe()
        assert said.fingerprint["personality"] == "phone-denied"
        assert pb.TEMPERATURE not in {channel.kind for channel in said.channels}
        client.close()
        endpoint.close()
        server.disconnect(phone.serial)


def test_doctor_of_a_device_keeps_its_report(
    server: AdbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QHOST_CACHE_DIR", str(tmp_path))
    with EmulatedPhone("sm8650", personality="phone-denied") as phone:
        device = connected(server, phone)
        assert main(["doctor", "--device", device.serial, "--json"]) == ExitCode.OK
        said = json.loads(capsys.readouterr().out)
        assert said["emulated"] and said["soc"] == "sm8650"
        refused = {s["node"] for s in said["sensors"] if not s["readable"]}
        assert refused and all("thermal_zone" in node for node in refused)
        checks = {check["name"]: check for check in said["checks"]}
        assert checks["temperature"]["ok"] is None and checks["programs"]["ok"]
        (kept,) = (tmp_path / "devices").glob("*.json")
        assert json.loads(kept.read_text()) == said
        assert main(["doctor", "--device", device.serial]) == ExitCode.OK
        shown = capsys.readouterr().out
        assert "EMULATED" in shown and "refused" in shown
        assert device.shell(f"ls {lease.BASE}/probe").code != 0
        server.disconnect(phone.serial)
    with EmulatedPhone("sm8650", sandbox=False) as phone:
        device = connected(server, phone)
        assert main(["doctor", "--device", device.serial]) == ExitCode.DEVICE_ERROR
        assert "has no shell that answers a script" in capsys.readouterr().err
        server.disconnect(phone.serial)


def test_one_lease_at_a_time(device: AdbDevice) -> None:
    with lease.acquire(device, owner="anna@lab pid 1"):
        held = lease.read(device)
        assert held is not None and not held.expired and held.owner == "anna@lab pid 1"
        with pytest.raises(lease.LeaseTaken, match="in use by anna@lab pid 1"):
            lease.acquire(device, owner="ben@desk pid 2")
    assert lease.read(device) is None
    lease.acquire(device, owner="ben@desk pid 2").release()


def test_a_lease_of_a_dead_host_runs_out(
    device: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "TERM_S", 1)
    lease.acquire(device, owner="dead@host pid 3").abandon()
    with lease.acquire(device, wait_s=20, owner="next@host pid 4"):
        held = lease.read(device)
        assert held is not None and held.owner == "next@host pid 4"


def test_a_lease_is_renewed(device: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TERM_S", 4)
    # What a connection that broke in the middle of a renewal leaves.
    device.check(f"mkdir -p {lease.BASE} && ln -s 1:n:x {lease.LINK}.n")
    with lease.acquire(device, owner="anna@lab pid 1", nonce="n"):
        first = lease.read(device)
        for _ in range(200):
            now = lease.read(device)
            if now and first and now.expires_s > first.expires_s:
                break
        assert first and now and now.expires_s > first.expires_s and now.nonce == first.nonce


def test_a_session_does_not_go_on_under_the_lease_of_another(device: AdbDevice) -> None:
    session = deploy.open_adb_device(device.serial, "")
    agent = install.running_agent(device)
    try:
        assert session.death() == ""
        device.check(f"ln -sfn 99999999999:x:ben@desk {lease.LINK}")
        with pytest.raises(DeviceError, match="leased to somebody else"):
            session.restart()
        session.close()
        held = lease.read(device)
        assert held is not None and held.owner == "ben@desk"
        assert install.running_agent(device) == agent is not None
    finally:
        device.check(f"rm -f {lease.LINK}")


def test_devices_and_agent_verbs(device: AdbDevice, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> str:
        assert main(argv) == ExitCode.OK
        return capsys.readouterr().out

    assert "agent runs as process" in run("agent", "start", "--device", device.serial)
    (row,) = [r for r in json.loads(run("devices", "--json")) if r["serial"] == device.serial]
    assert row["emulated"] and (row["soc"], row["htp_arch"]) == ("sm8650", "v75")
    assert row["charge_percent"] in range(101) and row["charging"] == "discharging"
    assert (row["thermal_status"], row["lease_holder"]) == ("none", "")
    assert row["agent_version"] and row["sensors"] > 20
    assert "EMULATED" in run("devices")
    assert "EMULATED agent" in run("agent", "status", "--device", "sm8650")
    assert "agent.log" in run("agent", "logs")
    assert "0.00 MB pushed" in run("agent", "deploy")
    assert "agent stopped" in run("agent", "stop")
    assert "no agent is running" in run("agent", "status")
    assert "removed" in run("agent", "remove")
    assert device.shell(f"ls {lease.BASE}").code != 0


def test_a_missing_device_is_one_line(
    server: AdbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "status", "--device", "nosuch"]) == ExitCode.DEVICE_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No device nosuch is attached" in error


def test_emulate_ends_with_its_devices() -> None:
    command = [sys.executable, "-m", "host", "emulate"]
    process = subprocess.Popen(
        [*command, "--soc", "sm8550", "--count", "2"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert all("EMULATED sm8550: adb connect 127.0.0.1:" in line for line in lines)
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--soc", "sm8250"], "sm8250"),
        (["--port", "5557"], "5555-5585"),
        (["--fault", "explode"], "unknown fault 'explode'"),
        (["--fault", "freeze:byte=3"], "no option 'byte'"),
        (["--fault", "drop:at=-1"], "must be 0 or more"),
        (["--isa", "aarch64", "--time-factor", "5"], "lives in real time"),
        (["--isa", "aarch64", "--no-sandbox"], "needs the sandbox"),
        (["--isa", "riscv"], "invalid choice: 'riscv'"),
        (["--root", "/proc/phone"], "Nothing can be written into /proc/phone"),
        (["--root", __file__], "Choose another --root"),
    ],
)
def test_emulate_refuses_what_it_cannot_do(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["emulate", *argv]) == ExitCode.USER_ERROR
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_emulate_says_that_its_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert main(["emulate", "--port", str(port)]) == ExitCode.USER_ERROR
    assert "Choose another --port" in capsys.readouterr().err
