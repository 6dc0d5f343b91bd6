"""Artifacts on the device's disk: <root>/artifacts/<sha256 of the .qnn>/, and their delivery.

An artifact directory holds manifest.json, contexts/<soc>/ and golden/<soc>/. It appears under its
final name only when every file has arrived with the right sha256.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from agent.errors import BadArtifact, BadRequest, NotFound
from agent.runtime import Array, Context, Tensor
from protos import agent_pb2 as pb

MAX_ARTIFACT_BYTES = 8 << 30
MAX_FILES = 10_000
MAX_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")


@dataclass(frozen=True)
class Golden:
    """One stored inference: what went in, and what the HTP emulator gave for this SoC."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def checked_sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise BadRequest("an artifact is named by 64 lower-case hex digits")
    return text


def checked_name(name: str) -> PurePosixPath:
    """A relative path of plain names: no `..`, no absolute path, nothing hidden, at most 8 deep."""
    parts = name.split("/")
    if len(parts) > 8 or not all(_PART.fullmatch(p) for p in parts):
        raise BadRequest("a file name holds plain relative parts (letters, digits, _ . + -)")
    return PurePosixPath(*parts)


def file_sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


class ArtifactStore:
    """The artifacts under one root."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("*.part"):
            shutil.rmtree(leftover)

    def names(self) -> list[str]:
        return sorted(p.name for p in self._dir.iterdir() if _SHA256.fullmatch(p.name))

    def path(self, sha256: str) -> Path:
        path = self._dir / checked_sha256(sha256)
        if not path.is_dir():
            raise NotFound(f"artifact {sha256[:12]} is not on this device")
        return path

    def manifest(self, sha256: str) -> dict[str, Any]:
        path = self.path(sha256) / "manifest.json"
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise BadArtifact(f"artifact {sha256[:12]} has no manifest.json") from error
        except ValueError as error:
            raise BadArtifact(f"artifact {sha256[:12]}: manifest.json is not JSON") from error
        if not isinstance(manifest, dict):
            raise BadArtifact(f"artifact {sha256[:12]}: manifest.json is not an object")
        return manifest

    def context(self, sha256: str, soc: str, soc_model: int, perf_profile: str = "") -> Context:
        """The context for `soc`, with its sha256 computed from the file that will be loaded.

        Without a perf_profile the manifest's run settings say it, and without those it is burst.
        onnxruntime can apply rpc_control_latency_us; its polling time and DCVS follow from the
        profile. The SDK's tools apply both RPC settings.
        """
        base = self.path(sha256) / "contexts" / soc
        wrapper, binary = base / "context.onnx", base / "context.bin"
        for path in (wrapper, binary):
            if not path.is_file():
                raise BadArtifact(f"artifact {sha256[:12]} has no context for {soc} ({path.name})")
        manifest = self.manifest(sha256)
        digest = file_sha256(binary)
        # A flipped bit in the weights loads and is silently wrong: QNN has no checksum of its own.
        listed = manifest.get("members", {}).get(f"contexts/{soc}/context.bin", {})
        if listed.get("sha256", digest) != digest:
            raise BadArtifact(f"artifact {sha256[:12]}: context.bin for {soc} is damaged")
        models = manifest.get("device_model", {})
        settings = manifest.get("run_settings", {})
        return Context(
            wrapper=wrapper,
            binary=binary,
            binary_sha256=digest,
            soc_model=soc_model,
            perf_profile=perf_profile or str(settings.get("perf_profile", "burst")),
            device_model=models.get(soc) if isinstance(models, dict) else None,
            rpc_control_latency_us=int(settings.get("rpc_control_latency_us", 0)),
            rpc_polling_us=int(settings.get("rpc_polling_us", 0)),
            inputs=_tensors(manifest, soc, "inputs"),
            outputs=_tensors(manifest, soc, "outputs"),
        )

    def goldens(self, sha256: str, soc: str) -> list[Golden]:
        """golden/<soc>/*.npz in name order; arrays `input/<name>` and `output/<name>`."""
        goldens = []
        for path in sorted((self.path(sha256) / "golden" / soc).glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
            except (ValueError, OSError, zipfile.BadZipFile) as error:
                raise BadArtifact(f"golden {path.name} is not a readable .npz") from error
            goldens.append(Golden(_under(arrays, "input/"), _under(arrays, "output/")))
        if not goldens or not goldens[0].inputs:
            raise BadArtifact(f"artifact {sha256[:12]} has no golden inputs for {soc}")
        return goldens

    async def receive(self, chunks: AsyncIterator[pb.ArtifactChunk]) -> pb.ArtifactReceipt:
        """Store one artifact from header, then for every file its header and its bytes."""
        first = await anext(chunks, None)
        if first is None or first.WhichOneof("part") != "header":
            raise BadRequest("the first message of PutArtifact is the artifact's header")
        sha256 = checked_sha256(first.header.sha256)
        if first.header.total_bytes > MAX_ARTIFACT_BYTES:
            raise BadRequest(f"an artifact has at most {MAX_ARTIFACT_BYTES} bytes")
        if (self._dir / sha256).is_dir():
            async for _ in chunks:
                pass
            return pb.ArtifactReceipt(sha256=sha256, already_present=True)
        part = self._dir / f"{sha256}.part"
        if part.exists():
            raise BadRequest("this artifact is being delivered by somebody else")
        part.mkdir()
        try:
            await _receive_files(part, chunks, first.header.total_bytes)
            part.rename(self._dir / sha256)
        finally:
            if part.exists():
                shutil.rmtree(part)
        return pb.ArtifactReceipt(sha256=sha256)


async def _receive_files(part: Path, chunks: AsyncIterator[pb.ArtifactChunk], total: int) -> None:
    out: BinaryIO | None = None
    header = pb.FileHeader()
    digest = hashlib.sha256()
    left = files = received = 0

    def finish() -> None:
        nonlocal out
        if out is None:
            return
        out.close()
        out = None
        if left:
            raise BadRequest(f"{header.name}: {left} bytes are missing")
        if digest.hexdigest() != header.sha256:
            raise BadRequest(f"{header.name}: the sha256 differs from the header's")

    try:
        async for chunk in chunks:
            if chunk.WhichOneof("part") == "file":
                finish()
                header = chunk.file
                files += 1
                received += header.size
                if files > MAX_FILES or received > total:
                    raise BadRequest("more files or bytes than the artifact's header says")
                path = part / checked_name(header.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    raise BadRequest(f"{header.name} comes twice")
                out, digest, left = path.open("wb"), hashlib.sha256(), header.size
            elif chunk.WhichOneof("part") == "data" and out is not None:
                if len(chunk.data) > min(left, MAX_CHUNK_BYTES):
                    raise BadRequest(f"{header.name}: more data than its header says")
                out.write(chunk.data)
                digest.update(chunk.data)
                left -= len(chunk.data)
            else:
                raise BadRequest("data comes after the header of its file")
        finish()
    finally:
        if out is not None:
            out.close()
    if received != total or not (part / "manifest.json").is_file():
        raise BadRequest("the artifact is incomplete: bytes or manifest.json are missing")


def _tensors(manifest: Mapping[str, Any], soc: str, which: str) -> tuple[Tensor, ...]:
    """The context's tensors as the compiler recorded them; () where it did not."""
    try:
        (graph,) = manifest["socs"][soc]["context"]["graphs"]
        return tuple(
            Tensor(str(t["name"]), str(t["dtype"]), tuple(int(n) for n in t["shape"]))
            for t in graph[which]
        )
    except (KeyError, TypeError, ValueError):
        return ()


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
