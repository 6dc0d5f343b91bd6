"""Layers of the agent's installation: archives that are named by their own sha256.

The same content gives the same bytes: members are sorted, owned by nobody, and have no times.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from host.errors import UserError
from host.lease import BASE

LAYERS = BASE / "layers"
_AGENT_PACKAGES = ("agent", "protos")


@dataclass(frozen=True)
class Layer:
    """One archive (tar.gz) of the agent's installation."""

    name: str
    sha256: str
    archive: Path

    @property
    def directory(self) -> PurePosixPath:
        """Where a device keeps it unpacked."""
        return LAYERS / f"{self.name}-{self.sha256}"


@dataclass(frozen=True)
class Member:
    """One file of a layer, under `name`."""

    name: str
    source: Path | bytes
    executable: bool = False


def files_of(root: Path) -> Iterator[Member]:
    """Every file below `root`; a link is the file it points to."""
    for path in root.rglob("*"):
        if path.is_file():
            yield Member(path.relative_to(root).as_posix(), path, os.access(path, os.X_OK))


def pack(name: str, members: Iterable[Member], folder: Path) -> Layer:
    """Write the archive into `folder`, which must exist."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as out:
        part = Path(out.name)
        try:
            # No file name and no time in gzip's header either.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=out, mtime=0) as packed:
                _write(packed, members)
            out.flush()
            with part.open("rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            archive = folder / f"{name}-{sha256}.tar.gz"
            part.chmod(0o644)
            part.replace(archive)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return Layer(name, sha256, archive)


def _write(out: gzip.GzipFile, members: Iterable[Member]) -> None:
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member in sorted(members, key=lambda m: m.name):
            info = tarfile.TarInfo(member.name)
            info.mode = 0o755 if member.executable else 0o644
            if isinstance(member.source, bytes):
                info.size = len(member.source)
                archive.addfile(info, io.BytesIO(member.source))
            else:
                info.size = member.source.stat().st_size
                with member.source.open("rb") as source:
                    archive.addfile(info, source)


def agent_layer(folder: Path) -> Layer:
    """The agent's own code as a layer in `folder`."""
    members = []
    for package in _AGENT_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"The package {package} is not installed.", "Reinstall qhost.")
        base = Path(spec.submodule_search_locations[0])
        members += [
            Member(f"{package}/{path.relative_to(base).as_posix()}", path)
            for path in base.rglob("*.py")
        ]
    return pack("agent", members, folder)
