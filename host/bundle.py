"""The agent bundle: a Python for aarch64 that runs from any directory of a device.

`build` makes it from Debian's arm64 packages and from wheels of the very versions that this host
runs, in layers that a device gets one by one: base (the interpreter, glibc and the launcher), grpc,
numpy, and for Linux boards ort and one qnn-<arch> per Hexagon. Packages come through a private apt
state and through pip, both as this machine is configured; nothing is installed here.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from pathlib import Path

from host.errors import UserError
from host.layers import Layer, files_of, pack
from host.samples.fetch import run_tool

FORMAT = 1
PYTHON = "3.11"  # Debian 12's; the newest glibc that the wheels need is 2.34, it has 2.36
MANIFEST = "bundle.json"
LAUNCHER = "run"
_PACKAGES = (
    f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib",
    "libc6", "gcc-12-base", "libgcc-s1", "libstdc++6", "libgomp1", "libatomic1", "zlib1g",
    "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1",
    "libcrypt1",
)  # fmt: skip
_LIBRARIES = (
    "ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0",
    "librt.so.1", "libutil.so.1", "libresolv.so.2", "libnss_files.so.2", "libnss_dns.so.2",
    "libgcc_s.so.1", "libstdc++.so.6", "libgomp.so.1", "libatomic.so.1", "libz.so.1",
    "libexpat.so.1", "libffi.so.8", "libssl.so.3", "libcrypto.so.3", "libbz2.so.1.0",
    "liblzma.so.5", "libsqlite3.so.0", "libuuid.so.1", "libcrypt.so.1",
)  # fmt: skip
_LIBRARY_FOLDERS = ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu")
# Of the standard library: what no agent imports.
_LEFT_OUT = (
    "test", "lib2to3", "idlelib", "tkinter", "turtledemo", "ensurepip", "distutils", "pydoc_data",
    "venv", "curses", "LICENSE.txt", "EXTERNALLY-MANAGED", "sitecustomize.py",
)  # fmt: skip
_WHEELS: Mapping[str, tuple[str, ...]] = {
    "grpc": ("grpcio", "protobuf", "typing_extensions"),
    "numpy": ("numpy",),
    "ort": ("onnxruntime", "onnxruntime-qnn"),
}
_ORDER = ("base", "grpc", "numpy", "ort", "qnn")  # in which layers are listed
_PLATFORMS = ("2_34", "2_28", "2_27", "2_17")
_HEXAGONS = (68, 69, 73, 75, 79, 81)
# Of onnxruntime-qnn a board needs the provider, libQnnHtp and libQnnSystem; contexts come prepared.
_BOARD_LIBRARIES = ("libonnxruntime_providers_qnn.so", "libQnnHtp.so", "libQnnSystem.so")
# Every start of the interpreter on a device is by ld.so; `sys.executable` has to be the launcher,
# or child processes would look for an ld.so that the device does not have.
_SITECUSTOMIZE = b"""import os
import sys

if "QHOST_BUNDLE_RUN" in os.environ:
    sys.executable = sys._base_executable = os.environ["QHOST_BUNDLE_RUN"]
"""
_LAUNCHER = """#!{shell}
# Starts this bundle's Python, wherever the bundle lies. QHOST_EMULATOR: what runs aarch64 programs
# on a machine that is none; no device sets it.
d=${{0%/*}}
unset LD_LIBRARY_PATH LD_PRELOAD PYTHONHOME
export QHOST_BUNDLE_RUN="$d/run" PYTHONUTF8=1 PYTHONNOUSERSITE=1 LC_ALL=C.UTF-8
export GRPC_DNS_RESOLVER=native ORT_DISABLE_TELEMETRY=1
exec $QHOST_EMULATOR "$d/lib/ld-linux-aarch64.so.1" \\
  --library-path "$d/lib${{QHOST_LIBRARY_PATH:+:$QHOST_LIBRARY_PATH}}" \\
  --argv0 "$d/bin/python{python}" "$d/bin/python{python}" "$@"
"""

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """A kind of device. `shell` interprets the launcher there."""

    name: str
    shell: str
    wheels: tuple[str, ...]  # the layers that are made of wheels


TARGETS = {
    t.name: t
    for t in (
        Target("android-aarch64", "/system/bin/sh", ("grpc", "numpy")),
        Target("linux-aarch64", "/bin/sh", ("grpc", "numpy", "ort")),
    )
}


@dataclass(frozen=True)
class Component:
    """One package in the bundle. `text`: where in its layer the licence is to be read."""

    name: str
    version: str
    licence: str
    layer: str
    text: str


@dataclass(frozen=True)
class Bundle:
    """Layers in the order in which they are searched, and what they hold."""

    target: str
    layers: tuple[Layer, ...]
    unpacked_bytes: Mapping[str, int]
    components: tuple[Component, ...]

    def layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)


def default_folder(cache: Path, target: str) -> Path:
    """Where `build` puts a bundle and deployment looks for it."""
    return cache / "bundles" / target


def build(
    target: Target,
    folder: Path,
    downloads: Path,
    on_step: OnStep,
    only: Collection[str] | None = None,
) -> Bundle:
    """Build into `folder`; what is fetched stays in `downloads`. Minutes, once per version.

    `only`: the layers to make, where a part is enough. Raises UserError where a package cannot be
    had. An existing bundle is replaced at the end.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=folder.parent) as temporary:
        work = Path(temporary)
        maker = _Maker(work / "out", on_step, only)
        if maker.wants("base"):
            on_step("Debian packages")
            maker.components += _base(_debian(downloads / "apt"), target, work / "base", work)
            _compile(work / "base")
            maker.add("base", work / "base")
        for name in filter(maker.wants, target.wheels):
            on_step(f"wheels of {name}")
            root = work / name
            wheels = _wheels(_WHEELS[name], downloads / "wheels")
            maker.components += [_unpack(wheel, root, name) for wheel in wheels]
            for arch, part in _split_hexagons(root, work) if name == "ort" else ():
                maker.add(f"qnn-v{arch}", part)
            _compile(root)
            maker.add(name, root)
        maker.layers.sort(key=lambda layer: _ORDER.index(layer.name.partition("-")[0]))
        _write_manifest(
            Bundle(target.name, tuple(maker.layers), maker.sizes, tuple(maker.components)),
            maker.out,
        )
        shutil.rmtree(folder, ignore_errors=True)
        maker.out.rename(folder)
    return open_bundle(folder)


class _Maker:
    """What has been made so far."""

    def __init__(self, out: Path, on_step: OnStep, only: Collection[str] | None) -> None:
        self.out = out
        self.layers: list[Layer] = []
        self.sizes: dict[str, int] = {}
        self.components: list[Component] = []
        self._on_step = on_step
        self._only = only
        out.mkdir(parents=True)

    def wants(self, name: str) -> bool:
        return self._only is None or name in self._only

    def add(self, name: str, root: Path) -> None:
        """The files below `root` as a layer, if it is wanted."""
        if self.wants(name):
            self._on_step(f"layer {name}")
            self.sizes[name] = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
            self.layers.append(pack(name, files_of(root), self.out))


def open_bundle(folder: Path) -> Bundle:
    """The bundle in `folder`. UserError when it is none, is damaged, or of another version."""
    again = "Build it again: qhost agent bundle."
    try:
        said = json.loads((folder / MANIFEST).read_text())
        if said["format"] != FORMAT:
            raise UserError(f"The bundle in {folder} is of another version of qhost.", again)
        layers = tuple(
            Layer(row["name"], row["sha256"], folder / row["archive"]) for row in said["layers"]
        )
        sizes = {row["name"]: int(row["unpacked_bytes"]) for row in said["layers"]}
        components = tuple(Component(**row) for row in said["components"])
        target = str(said["target"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"There is no agent bundle in {folder}.", again) from None
    for layer in layers:
        if not layer.archive.is_file():
            raise UserError(f"The bundle in {folder} lacks {layer.archive.name}.", again)
    return Bundle(target, layers, sizes, components)


def _write_manifest(bundle: Bundle, folder: Path) -> None:
    rows = [
        {
            "name": layer.name,
            "sha256": layer.sha256,
            "archive": layer.archive.name,
            "bytes": layer.archive.stat().st_size,
            "unpacked_bytes": bundle.unpacked_bytes[layer.name],
        }
        for layer in bundle.layers
    ]
    said = {
        "format": FORMAT,
        "target": bundle.target,
        "python": PYTHON,
        "layers": rows,
        "components": [asdict(component) for component in bundle.components],
    }
    (folder / MANIFEST).write_text(json.dumps(said, indent=1) + "\n")
    lines = [
        f"{c.name} {c.version}: {c.licence} ({c.text} in layer {c.layer})"
        for c in bundle.components
    ]
    (folder / "LICENCES.txt").write_text("\n".join(lines) + "\n")


# Fetching ----------------------------------------------------------------------------------


def _debian(state: Path) -> list[Path]:
    """Debian's arm64 packages as files, fetched with an apt state of our own below `state`."""
    failed = "Debian's arm64 packages could not be fetched"
    hint = "A bundle is built on Debian 12, whose Python 3.11 it carries."
    for name in ("lists/partial", "cache/archives/partial", "packages"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",  # or a root's apt could not write where only root may
    }
    lines = [f'{key} "{value}";' for key, value in settings.items()]
    (state / "apt.conf").write_text("\n".join([*lines, 'APT::Architectures {"arm64"};', ""]))
    environment = {"APT_CONFIG": str(state / "apt.conf"), "LC_ALL": "C"}
    run_tool(["apt-get", "update", "--quiet"], failed, hint, environment=environment)
    with tempfile.TemporaryDirectory(dir=state) as fresh:
        run_tool(
            ["apt-get", "download", "--quiet", *_PACKAGES],
            failed, hint, cwd=Path(fresh), environment=environment,
        )  # fmt: skip
        shutil.rmtree(state / "packages")
        Path(fresh).rename(state / "packages")
        Path(fresh).mkdir()  # for its own removal
    return sorted((state / "packages").glob("*.deb"))


def _wheels(names: Iterable[str], folder: Path) -> list[Path]:
    """aarch64 wheels of exactly the versions that this host has."""
    found = []
    for name in names:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"{name} is not installed.", "Reinstall qhost.") from None
        stem = f"{name.replace('-', '_')}-{version}-"
        if not list(folder.glob(f"{stem}*.whl")):
            folder.mkdir(parents=True, exist_ok=True)
            platforms = [f"--platform=manylinux_{p}_aarch64" for p in _PLATFORMS]
            run_tool(
                [
                    sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                    "--disable-pip-version-check", "--only-binary=:all:", *platforms,
                    "--platform=manylinux2014_aarch64", f"--python-version={PYTHON}",
                    "--implementation=cp", "--dest", str(folder), f"{name}=={version}",
                ],
                f"The aarch64 wheel of {name} {version} could not be fetched",
                "See what pip says: python -m pip download.",
            )  # fmt: skip
        found += sorted(folder.glob(f"{stem}*.whl"))
    return found


# Layers ------------------------------------------------------------------------------------


def _base(packages: list[Path], target: Target, base: Path, work: Path) -> list[Component]:
    """Interpreter, libraries and launcher from the unpacked packages."""
    root = work / "debian"
    for package in packages:
        run_tool(["dpkg", "-x", str(package), str(root)], f"{package.name} is damaged", "Try again")
    (base / "bin").mkdir(parents=True)
    (base / "lib").mkdir()
    shutil.copy2(root / f"usr/bin/python{PYTHON}", base / "bin")
    for name in _LIBRARIES:
        source = next(
            (p for folder in _LIBRARY_FOLDERS if (p := root / folder / name).exists()), None
        )
        if source is None:
            raise UserError(f"Debian's packages have no {name}.", "A bundle is of Debian 12.")
        shutil.copy2(source.resolve(), base / "lib" / name)
    library = base / f"lib/python{PYTHON}"
    shutil.copytree(
        root / f"usr/lib/python{PYTHON}",
        library,
        ignore=lambda folder, names: {
            n for n in names
            if n == "__pycache__" or n.startswith("config-")
            or (n in _LEFT_OUT and Path(folder).name == f"python{PYTHON}")
        },
    )  # fmt: skip
    (library / "sitecustomize.py").write_bytes(_SITECUSTOMIZE)
    launcher = base / LAUNCHER
    launcher.write_text(_LAUNCHER.format(shell=target.shell, python=PYTHON))
    launcher.chmod(0o755)
    return [_debian_component(package, root, base) for package in packages]


def _debian_component(package: Path, root: Path, base: Path) -> Component:
    name, version, *_ = package.stem.split("_")
    text = f"share/doc/{name}/copyright"
    source = root / f"usr/{text}"
    (base / text).parent.mkdir(parents=True)
    shutil.copyfile(source.resolve(), base / text)
    found = re.findall(r"^License: ?([\w.+-]+(?: (?:and|or) [\w.+-]+)*)$", source.read_text(), re.M)
    licence = ", ".join(sorted(set(found))) or "see its text"
    return Component(name, version.replace("%3a", ":"), licence, "base", text)


def _unpack(wheel: Path, root: Path, layer: str) -> Component:
    """A wheel's files without tests and headers, and what its metadata says of its licence."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = Path(name)
            left_out = "tests" in path.parts or path.suffix in (".pyi", ".h", ".a", ".pxd", ".c")
            if not left_out and path.name not in ("RECORD", "INSTALLER"):
                archive.extract(name, root)
        (information,) = {
            part for name in archive.namelist() if (part := name.split("/")[0]).endswith("-info")
        }
        said = HeaderParser().parsestr(archive.read(f"{information}/METADATA").decode())
        texts = [
            name
            for name in archive.namelist()
            if "licen" in name.lower() and "-info/" in name and not name.endswith("/")
        ]
    licence = said["License-Expression"] or (said["License"] or "see its text").splitlines()[0]
    text = texts[0] if texts else f"{information}/METADATA"
    return Component(said["Name"], said["Version"], licence, layer, text)


def _split_hexagons(ort: Path, work: Path) -> Iterator[tuple[int, Path]]:
    """Move what belongs to one Hexagon into a folder of its own; drop what boards do not need."""
    package = ort / "onnxruntime_qnn"
    for arch in _HEXAGONS:
        part = work / f"qnn-v{arch}"
        part.mkdir()
        for kind in ("Stub", "Skel"):
            library = package / f"libQnnHtpV{arch}{kind}.so"
            library.rename(part / library.name)
        yield arch, part
    for library in package.glob("*.so"):
        if library.name not in _BOARD_LIBRARIES:
            library.unlink()


def _compile(root: Path) -> None:
    """Replace sources by byte code that no file time can make stale.

    Needs an interpreter of the bundle's own version, because byte code differs between versions;
    without one the sources stay, and an agent takes some seconds longer to start.
    """
    python = _same_python()
    if python is None:
        return
    command = [
        python, "-I", "-m", "compileall", "-q", "-b", "--invalidation-mode", "unchecked-hash",
        "-s", str(root), "-p", "bundle", str(root),
    ]  # fmt: skip
    # Files that are no valid Python (templates of lib2to3, say) stay sources; that is no failure.
    subprocess.run(command, capture_output=True, check=False)
    for source in root.rglob("*.py"):
        if source.with_suffix(".pyc").exists():
            source.unlink()


def _same_python() -> str | None:
    if sys.version_info[:2] == tuple(int(part) for part in PYTHON.split(".")):
        return sys.executable
    return shutil.which(f"python{PYTHON}")
