"""The .qnn file: one variant of one model, compiled for one or more SoCs. See docs/artifact.md."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quant.archive import (
    CHUNK,
    Member,
    copy_member,
    digest,
    read_archive,
    safe_name,
    write_archive,
)
from quant.encoding import Encoding
from quant.errors import UserError
from quant.htp.compile import Compiled, external_data_files
from quant.htp.inspect import ContextInfo, read_context
from quant.htp.options import HtpOptions, RunSettings
from quant.htp.soc import get_soc, soc_of_model
from quant.methods import Quantized
from quant.model import Model, TensorSpec
from quant.npz import load_npz, npz_bytes
from quant.task import Task

Array = np.ndarray[Any, Any]
Feeds = Sequence[Mapping[str, Array]]

FORMAT = "qhost-artifact"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class ArtifactContents:
    """What goes into an artifact.

    model_onnx: the QDQ graph that was compiled. contexts, device_model, goldens: by SoC id;
    goldens = (feeds, outputs of the HTP emulator for this SoC). quality: JSON by engine; scores:
    per-sample scores by engine.
    """

    model: Model
    task: Task
    variant: str
    options_json: str
    model_onnx: Path
    contexts: Mapping[str, Compiled]
    quantized: Quantized
    goldens: Mapping[str, tuple[Feeds, Feeds]]
    quality: Mapping[str, Any]
    scores: Mapping[str, Array]
    device_model: Mapping[str, Mapping[str, Any]]
    htp_options: HtpOptions = field(default_factory=HtpOptions)
    run_settings: RunSettings = field(default_factory=RunSettings)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """A verified .qnn file. `sha256` is that of the whole file and names it on devices."""

    path: Path
    sha256: str
    manifest: Mapping[str, Any]
    members: Mapping[str, Member]

    @cached_property
    def socs(self) -> tuple[str, ...]:
        return tuple(self.manifest["socs"])

    @property
    def variant(self) -> str:
        return str(self.manifest["variant"])

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def soc(self, soc: str) -> Mapping[str, Any]:
        """The manifest's entry of one SoC. Raises UserError where the artifact lacks it."""
        entry: Mapping[str, Any] | None = self.manifest["socs"].get(soc)
        if entry is None:
            raise UserError(
                f"{self.path} has no context for {soc}, only for {', '.join(self.socs)}.",
                f"Compile the model for {soc}.",
            )
        return entry

    def read(self, name: str) -> bytes:
        """The data of one member."""
        member = self.members.get(name)
        if member is None:
            raise UserError(f"{self.path} holds no {name}.")
        out = io.BytesIO()
        copy_member(self.path, member, out)
        return out.getvalue()

    def arrays(self, name: str) -> dict[str, Array]:
        """The arrays of an .npz member."""
        return load_npz(self.path, name, self.read(name))

    def goldens(self, soc: str) -> list[tuple[dict[str, Array], dict[str, Array]]]:
        """(inputs, outputs) by tensor name, one pair per stored inference."""
        self.soc(soc)
        out = []
        for name in self.members:
            if name.startswith(f"golden/{soc}/"):
                arrays = self.arrays(name)
                out.append((_under(arrays, "input/"), _under(arrays, "output/")))
        return out

    def extract_members(self, dest: Path, names: Sequence[str]) -> None:
        """Write members below `dest`, verifying each again while it is copied."""
        for name in names:
            target = dest / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                copy_member(self.path, self.members[name], out)

    def read_context(self, soc: str, folder: Path) -> ContextInfo:
        """Metadata of the context for `soc`, read from the binary itself, extracted to `folder`.

        Raises UserError where the binary is for another SoC, whatever the manifest says: an x86
        host loads it all the same, and computes with another part's arithmetic.
        """
        self.soc(soc)
        name = f"contexts/{soc}/context.bin"
        self.extract_members(folder, [name])
        info = read_context(folder / name)
        if (info.soc_model, info.arch) != (get_soc(soc).soc_model, get_soc(soc).arch):
            found = soc_of_model(info.soc_model)
            raise UserError(
                f"{self.path}: the context filed under {soc} is for "
                f"{found.id if found else f'soc_model {info.soc_model}, v{info.arch}'}.",
                "Build the artifact again.",
            )
        return info

    def device_members(self, soc: str) -> tuple[str, ...]:
        """The members a device of this SoC gets."""
        self.soc(soc)
        wanted = (f"contexts/{soc}/", f"golden/{soc}/")
        return (MANIFEST, *(n for n in self.members if n.startswith(wanted)))

    def extract(self, dest: Path, soc: str) -> Path:
        """Write what a device of `soc` gets to dest/<sha256> and return that directory.

        Raises UserError where the artifact has no context for `soc`, or one of another SoC in its
        place. An existing directory of that name is returned as it is: it appears only when
        complete.
        """
        names = self.device_members(soc)
        target = dest / self.sha256
        if target.is_dir():
            return target
        dest.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=f".{self.sha256[:12]}.", dir=dest))
        try:
            self.read_context(soc, temp)
            self.extract_members(temp, names)
            temp.chmod(0o755)
            temp.rename(target)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        return target


def write_artifact(path: Path, contents: ArtifactContents) -> Artifact:
    """Write the artifact and return it, opened. Equal contents give equal bytes.

    Raises UserError where the disk or the size limit says no; `path` is then unchanged.
    """
    members = model_members(contents.model_onnx)
    for soc in sorted(contents.contexts):
        compiled = contents.contexts[soc]
        members.append((f"contexts/{soc}/context.onnx", compiled.context_onnx))
        members.append((f"contexts/{soc}/context.bin", compiled.context_bin))
    members.append(("encodings.json", json_bytes(encodings_json(contents.quantized))))
    for soc in sorted(contents.goldens):
        members += golden_members(soc, *contents.goldens[soc])
    layers = [dataclasses.asdict(layer) for layer in contents.quantized.layers]
    members.append(("report/layers.json", json_bytes(layers)))
    for name, document in sorted(contents.quantized.reports.items()):
        members.append((f"report/{name}.json", json_bytes(document)))
    members.append(("quality/scores.npz", npz_bytes(contents.scores)))
    return write_members(path, _manifest(contents), members)


def write_members(
    path: Path, manifest: dict[str, Any], members: Sequence[tuple[str, Path | bytes]]
) -> Artifact:
    """Write manifest and members, the checksums of the members put into the manifest."""
    listed = {
        name: dict(zip(("size", "sha256"), digest(source)[::2], strict=True))
        for name, source in members
    }
    try:
        write_archive(path, [(MANIFEST, json_bytes({**manifest, "members": listed})), *members])
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
    return open_artifact(path)


def model_members(model_onnx: Path) -> list[tuple[str, Path | bytes]]:
    """model.onnx and the files of its external weights."""
    members: list[tuple[str, Path | bytes]] = [("model.onnx", model_onnx)]
    for name in external_data_files(model_onnx):
        if not safe_name(name):
            raise UserError(f"The weight file {name!r} cannot be put into an artifact.")
        members.append((name, model_onnx.parent / name))
    return members


def golden_members(soc: str, feeds: Feeds, outputs: Feeds) -> list[tuple[str, Path | bytes]]:
    """The members that hold one SoC's stored inferences."""
    members: list[tuple[str, Path | bytes]] = []
    for i, (feed, out) in enumerate(zip(feeds, outputs, strict=True)):
        arrays = {f"input/{k}": v for k, v in feed.items()}
        arrays |= {f"output/{k}": v for k, v in out.items()}
        members.append((f"golden/{soc}/{i:04d}.npz", npz_bytes(arrays)))
    return members


def soc_entry(compiled: Compiled) -> dict[str, Any]:
    """The manifest's entry of one SoC."""
    return {
        "soc_model": compiled.info.soc_model,
        "arch": compiled.info.arch,
        "context_bytes": compiled.context_bin.stat().st_size,
        "download_bytes": download_bytes(compiled.context_onnx, compiled.context_bin),
        "figures": dataclasses.asdict(compiled.figures),
        "context": compiled.info.to_json(),
        "node_map": {node: list(ops) for node, ops in compiled.node_map.items()},
        "toolchain": compiled.toolchain,
    }


def interface_json(model: Model, model_type: str) -> dict[str, Any]:
    """The manifest's entry of the model."""
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "model_type": model_type,
        "inputs": [_spec(s) for s in model.inputs],
        "outputs": [_spec(s) for s in model.outputs],
    }


def _manifest(contents: ArtifactContents) -> dict[str, Any]:
    task = contents.task
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": interface_json(contents.model, task.model_type),
        "task": {
            "name": task.name,
            "fingerprint": task.fingerprint,
            "metric": task.metric.name if task.metric else None,
            "synthetic": task.synthetic,
            "notes": list(task.notes),
        },
        "variant": contents.variant,
        "options": json.loads(contents.options_json),
        "notes": [*contents.quantized.notes, *contents.notes],
        "htp_options": dataclasses.asdict(contents.htp_options),
        "run_settings": dataclasses.asdict(contents.run_settings),
        "socs": {soc: soc_entry(c) for soc, c in sorted(contents.contexts.items())},
        "quality": dict(contents.quality),
        "device_model": {soc: dict(block) for soc, block in contents.device_model.items()},
    }


def open_artifact(path: Path) -> Artifact:
    """Read and verify an artifact: structure, every checksum, the manifest's version and fields.

    Raises UserError for anything else than an intact artifact of a version this program knows.
    """
    members, sha256 = read_archive(path)
    first = next(iter(members))
    if first != MANIFEST or members[first].size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path} is not a .qnn artifact: it does not begin with a manifest.")
    raw = io.BytesIO()
    copy_member(path, members[MANIFEST], raw)
    try:
        manifest = json.loads(raw.getvalue())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the manifest is not JSON.") from error
    _check_manifest(path, manifest, members)
    return Artifact(path, sha256, manifest, members)


def _check_manifest(path: Path, manifest: Any, members: Mapping[str, Member]) -> None:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a .qnn artifact: the manifest is of another kind.")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path}: the manifest has no valid version.")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}; this qhost reads up to {FORMAT_VERSION}.",
            "Update qhost, or build the artifact again with this one.",
        )
    if not isinstance(manifest.get("options"), list):
        raise UserError(f"{path}: the manifest lacks 'options'.")
    for key in ("model", "task", "htp_options", "run_settings", "socs", "quality"):
        if not isinstance(manifest.get(key), dict):
            raise UserError(f"{path}: the manifest lacks {key!r}.")
    if not isinstance(manifest.get("device_model"), dict):
        raise UserError(f"{path}: the manifest lacks 'device_model'.")
    listed = manifest.get("members")
    found = {n: {"size": m.size, "sha256": m.sha256} for n, m in members.items() if n != MANIFEST}
    if listed != found:
        raise UserError(
            f"{path} is not a valid artifact: its members are not those the manifest lists.",
            "Build it again, or copy it again.",
        )
    for soc_id, entry in manifest["socs"].items():
        soc = get_soc(soc_id)
        if not isinstance(entry, dict) or (entry.get("soc_model"), entry.get("arch")) != (
            soc.soc_model,
            soc.arch,
        ):
            raise UserError(f"{path}: the context filed under {soc_id} is for another SoC.")
        for name in (f"contexts/{soc_id}/context.onnx", f"contexts/{soc_id}/context.bin"):
            if name not in members:
                raise UserError(f"{path}: the manifest promises {name}, which is missing.")


def download_bytes(*files: Path) -> int:
    """Bytes of the files after deflate (level 6): about what an app store would transfer."""
    total = 0
    for file in files:
        packer = zlib.compressobj(6)
        with file.open("rb") as source:
            while chunk := source.read(CHUNK):
                total += len(packer.compress(chunk))
        total += len(packer.flush())
    return total


def encodings_json(quantized: Quantized) -> dict[str, Any]:
    """The plan as JSON: per tensor bits, signedness, scale, zero point, axis, block size."""
    plan = quantized.plan
    return {
        "version": 1,
        "tensors": {name: _encoding(e) for name, e in sorted(plan.tensors.items())},
        "converted": {name: _encoding(e) for name, e in sorted(plan.converted.items())},
    }


def _encoding(encoding: Encoding) -> dict[str, Any]:
    return {
        "bits": encoding.bits,
        "signed": encoding.signed,
        "symmetric": encoding.symmetric,
        "scale": np.asarray(encoding.scale).tolist(),
        "zero_point": np.asarray(encoding.zero_point).tolist(),
        "axis": encoding.axis,
        "block_size": encoding.block_size,
    }


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def json_bytes(value: object) -> bytes:
    text = json.dumps(_finite(value), indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: object) -> object:
    """`value` in JSON's types; a figure that is infinite or undefined becomes null."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
