"""Damage an artifact in every way there is and see that the command line refuses all of it.

    python tools/damage_artifact.py ARTIFACT.qnn [--seed 0]

One flipped bit in every member, in every field of every local header, central-directory entry and
the end record, and at 100 random places; truncation; unsafe and double names; a newer manifest; a
ZIP bomb; a context of another SoC in place of the right one. Each damaged file goes through
`qhost inspect`, `optimize` and `bench --mock`: all must exit with 1 and one line, and leave no
output. Exit 1 when one does not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from host.cli import main as qhost
from quant import archive
from quant.artifact import MANIFEST, Artifact, open_artifact
from quant.htp.compile import compile_context
from quant.htp.options import HtpOptions
from quant.htp.soc import SOCS

# (name, offset, size) of the fields; what follows is the file's name.
LOCAL = (
    ("signature", 0, 4), ("version", 4, 2), ("flags", 6, 2), ("method", 8, 2), ("time", 10, 2),
    ("date", 12, 2), ("crc", 14, 4), ("packed size", 18, 4), ("size", 22, 4),
    ("name length", 26, 2), ("extra length", 28, 2), ("name", 30, 1),
)  # fmt: skip
CENTRAL = (
    ("signature", 0, 4), ("made by", 4, 2), ("version", 6, 2), ("flags", 8, 2), ("method", 10, 2),
    ("time", 12, 2), ("date", 14, 2), ("crc", 16, 4), ("packed size", 20, 4), ("size", 24, 4),
    ("name length", 28, 2), ("extra length", 30, 2), ("comment length", 32, 2), ("disk", 34, 2),
    ("internal", 36, 2), ("external", 38, 4), ("offset", 42, 4), ("name", 46, 1),
)  # fmt: skip
END = (
    ("signature", 0, 4), ("disk", 4, 2), ("directory disk", 6, 2), ("entries here", 8, 2),
    ("entries", 10, 2), ("directory size", 12, 4), ("directory offset", 16, 4),
    ("comment length", 20, 2),
)  # fmt: skip

Damage = Iterator[tuple[str, bytes]]


def flip(data: bytes, position: int, rng: random.Random) -> bytes:
    out = bytearray(data)
    out[position] ^= 1 << rng.randrange(8)
    return bytes(out)


def flips(artifact: Artifact, data: bytes, rng: random.Random) -> Damage:
    for name, member in artifact.members.items():
        place = member.offset + rng.randrange(max(member.size, 1))
        yield f"member {name}", flip(data, place, rng)
        start = member.offset - 30 - len(name)
        for field, offset, size in LOCAL:
            yield (
                f"header of {name}: {field}",
                flip(data, start + offset + rng.randrange(size), rng),
            )
    end = data.rindex(b"PK\5\6")
    (position,) = struct.unpack_from("<L", data, end + 16)
    for name in artifact.members:
        for field, offset, size in CENTRAL:
            place = position + offset + rng.randrange(size)
            yield f"directory entry of {name}: {field}", flip(data, place, rng)
        position += 46 + len(name)
    for field, offset, size in END:
        yield f"end record: {field}", flip(data, end + offset + rng.randrange(size), rng)
    for _ in range(100):
        place = rng.randrange(len(data))
        yield f"byte {place}", flip(data, place, rng)


def rebuilt(members: list[tuple[str, bytes]]) -> bytes:
    """An archive with correct headers and checksums for any names and contents."""
    body, central = b"", b""
    for name, content in members:
        raw, crc = name.encode(), zlib.crc32(content)
        central += archive._central_header(raw, len(content), crc, len(body))
        body += archive._local_header(raw, len(content), crc) + content
    return body + central + archive._end(len(members), len(central), len(body))


def forgeries(artifact: Artifact, data: bytes, rng: random.Random, work: Path) -> Damage:
    for size in (0, 1, 30, len(data) // 2, len(data) - 1):
        yield f"truncated to {size} bytes", data[:size]
    yield "a byte behind the end", data + b"\0"
    files = [(name, artifact.read(name)) for name in artifact.members]
    for name in ("../evil", "/etc/evil", "a/../../evil", ".hidden"):
        yield f"name {name}", rebuilt([*files, (name, b"x")])
    yield "a name twice", rebuilt([*files, ("model.onnx", b"x")])
    manifest = dict(artifact.manifest)
    newer = json.dumps({**manifest, "format_version": 2}).encode()
    yield "a newer manifest", rebuilt([(MANIFEST, newer), *files[1:]])
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(MANIFEST, bytes(1 << 28))
    yield "a ZIP bomb", bomb.getvalue()
    yield "another SoC's context", rebuilt(swapped(artifact, files, work))


def swapped(
    artifact: Artifact, files: list[tuple[str, bytes]], work: Path
) -> list[tuple[str, bytes]]:
    """A context of the next SoC under the first one's name, with every checksum made right."""
    soc = artifact.socs[0]
    foreign = next(s for s in SOCS.values() if s.fp16 and s.id != soc)
    model = work / "model.onnx"
    model.write_bytes(artifact.read("model.onnx"))
    binary = compile_context(model, foreign, HtpOptions(), work / "foreign").context_bin
    name = f"contexts/{soc}/context.bin"
    size, _, sha256 = archive.digest(binary)
    members = {**artifact.manifest["members"], name: {"size": size, "sha256": sha256}}
    changed = json.dumps({**artifact.manifest, "members": members}).encode()
    replaced = {MANIFEST: changed, name: binary.read_bytes()}
    return [(n, replaced.get(n, content)) for n, content in files]


def refused(bad: Path, work: Path, verbs: tuple[str, ...]) -> str:
    """What is wrong with how the command line takes `bad`; empty when it refuses it properly."""
    out, db = work / "out.qnn", work / "db.duckdb"
    commands = {
        "inspect": ["inspect", str(bad)],
        "optimize": ["optimize", "--model-path", str(bad), "--output-path", str(out)],
        "bench": ["bench", "--mock", "--model-path", str(bad), "--db-path", str(db),
                  "--output-dir", str(work / "pages")],
    }  # fmt: skip
    for verb in verbs:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = qhost(commands[verb])
        line = stderr.getvalue().strip()
        if code != 1 or not line.startswith("qhost: error: ") or "\n" in line:
            return f"{verb}: exit {code}: {line[-200:]}"
        if stdout.getvalue() or out.exists() or db.exists() or (work / "pages").exists():
            return f"{verb}: left output behind"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    artifact, data = open_artifact(options.artifact), options.artifact.read_bytes()
    counts = {"flips": 0, "forgeries": 0}
    problems = []
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        os.environ["QHOST_CACHE_DIR"] = str(work / "cache")
        bad = work / "bad.qnn"
        for kind, damages, verbs in (
            ("flips", flips(artifact, data, rng), ("inspect", "optimize", "bench")),
            ("forgeries", forgeries(artifact, data, rng, work), ("inspect", "bench")),
        ):
            for what, damaged in damages:
                bad.write_bytes(damaged)
                counts[kind] += 1
                if problem := refused(bad, work, verbs):
                    problems.append(f"{what}: {problem}")
                    print(problems[-1], flush=True)
    size = len(data)
    print(
        f"{options.artifact.name}, {size:,} bytes, {len(artifact.members)} members: "
        f"{counts['flips']} flips and {counts['forgeries']} forgeries, {len(problems)} not refused"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
