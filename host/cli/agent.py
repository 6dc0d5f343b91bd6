"""`qhost agent`: build its bundle; deploy, start, stop, look at and remove it on a device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from host.adb import AdbDevice

DeviceOption = Annotated[
    str, typer.Option(help="Serial or SoC id; not needed when one device is attached.")
]


def register(app: typer.Typer) -> None:
    agent = typer.Typer(
        help="The agent on a device: bundle, deploy, start, stop, status, logs, remove.",
        no_args_is_help=True,
    )
    app.add_typer(agent, name="agent")

    agent.command("bundle")(make_bundle)

    @agent.command("deploy")
    def deploy(device: DeviceOption = "") -> None:
        """Push the layers that the device lacks, and verify them there."""
        from host.deploy import deploy

        target = _find(device)
        done = deploy(target)
        for layer in done.layers:
            how = "pushed" if layer in done.pushed else "there"
            print(f"{layer.name} {layer.sha256[:12]} {how}")
        print(f"{target.serial}: {done.pushed_bytes / 1e6:.2f} MB pushed")

    @agent.command("start")
    def start(device: DeviceOption = "") -> None:
        """Deploy and start the agent; it runs until 'qhost agent stop' or a reboot."""
        from host import lease
        from host.deploy import ensure_agent

        target = _find(device)
        with lease.acquire(target):
            endpoint = ensure_agent(target)
            endpoint.close()
        print(f"{target.serial}: agent runs as process {endpoint.agent.pid}")

    @agent.command("stop")
    def stop(device: DeviceOption = "") -> None:
        """Stop the agent; what it has not handed over stays on the device."""
        from host import install, lease

        target = _find(device)
        with lease.acquire(target):
            running = install.running_agent(target)
            if running:
                install.stop_agent(target, running)
        print(f"{target.serial}: {'agent stopped' if running else 'no agent was running'}")

    @agent.command("status")
    def status(device: DeviceOption = "") -> None:
        """What the agent is doing."""
        from host import install
        from host.client import AgentClient
        from host.deploy import AgentEndpoint

        target = _find(device)
        running = install.running_agent(target)
        if running is None:
            print(f"{target.serial}: no agent is running")
            return
        endpoint = AgentEndpoint(target, running)
        client = AgentClient(endpoint.address, endpoint.token)
        try:
            said, now = client.describe(), client.status()
        finally:
            client.close()
            endpoint.close()
        kind = "EMULATED " if target.emulated else ""
        doing = f"busy with {now.run_id}" if now.busy else "idle"
        print(f"{target.serial}: {kind}agent {said.agent_version}, process {running.pid}, {doing}")
        print(
            f"  {now.queued_segments} segments queued, {now.spool_bytes} bytes in the spool "
            f"(batch {now.acked_seq} of {max(now.next_seq, 1) - 1} fetched), "
            f"{len(now.artifacts)} artifacts"
        )

    @agent.command("logs")
    def logs(
        device: DeviceOption = "",
        lines: Annotated[int, typer.Option(help="How many of each log's last lines.", min=1)] = 50,
    ) -> None:
        """The last lines of the agent's logs."""
        from host import install

        target = _find(device)
        folder = install.AGENT_ROOT / "logs"
        names = target.shell(f"ls {folder}").stdout.split()
        for path in [install.START_LOG, *(folder / name for name in names)]:
            print(f"== {path}")
            print(target.shell(f"tail -n {lines} {path}").stdout, end="")

    @agent.command("remove")
    def remove(device: DeviceOption = "") -> None:
        """Stop the agent and delete everything of qhost from the device."""
        from host import install, lease

        target = _find(device)
        with lease.acquire(target):
            install.remove(target)
        print(f"{target.serial}: removed {lease.BASE}")


def make_bundle(
    target: Annotated[str, typer.Option(help="android-aarch64 or linux-aarch64.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Where it goes (default: where deploy looks for it).")
    ] = None,
) -> None:
    """Build the Python that runs the agent on a device, in layers named by their content."""
    from host import bundle, config
    from host.errors import unknown_name

    if target not in bundle.TARGETS:
        raise unknown_name("target", target, bundle.TARGETS)
    cache = config.cache_dir(config.resolve()["cache_dir"].value)
    folder = output_dir or bundle.default_folder(cache, target)
    built = bundle.build(
        bundle.TARGETS[target],
        folder,
        cache / "downloads" / "bundle",
        lambda step: print(f"{step} ...", file=sys.stderr),
    )
    for layer in built.layers:
        packed, unpacked = layer.archive.stat().st_size, built.unpacked_bytes[layer.name]
        print(
            f"{layer.name:<8} {layer.sha256[:12]}  {packed / 1e6:6.1f} MB packed, "
            f"{unpacked / 1e6:6.1f} MB on the device"
        )
    print(f"{len(built.components)} components, their licences in {folder / 'LICENCES.txt'}")
    print(folder)


def _find(wanted: str) -> AdbDevice:
    from host.attached import find_device

    return find_device(wanted)
