"""The .qnn file: equal bytes for equal contents, and no damaged one is ever opened."""

import dataclasses
import hashlib
import io
import json
import random
import struct
import zipfile
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quant import archive
from quant.artifact import (
    MANIFEST,
    ArtifactContents,
    download_bytes,
    open_artifact,
    write_artifact,
)
from quant.encoding import QuantPlan, asymmetric
from quant.errors import UserError
from quant.htp.compile import compile_context
from quant.htp.device_model import device_model_block
from quant.htp.emulator import HtpEmulator
from quant.htp.options import HtpOptions
from quant.htp.soc import get_soc
from quant.methods import Quantized
from quant.model import load
from quant.npz import npz_bytes
from quant.task import load_task

SOC = "sm8650"


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    w = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(model, path)
    loaded = load(path)
    task = load_task(None, loaded, model_type="vision", metric=None)
    compiled = compile_context(path, get_soc(SOC), HtpOptions(), folder / "out")
    feeds = [task.feed(loaded, i) for i in range(2)]
    with HtpEmulator(compiled.context_onnx, workers=1) as emulator:
        outputs = emulator.run(feeds)
    plan = QuantPlan({"x": asymmetric(-1.0, 1.0, 8)})
    return ArtifactContents(
        model=loaded,
        task=task,
        variant="fp16",
        options_json="[]",
        model_onnx=path,
        contexts={SOC: compiled},
        quantized=Quantized(loaded, plan, ("a note",), ()),
        goldens={SOC: (feeds, outputs)},
        quality={"htp_emulator": {"provenance": "htp_emulator", "n": 2, "sqnr_db": np.inf}},
        scores={"htp_emulator": np.array([1.0, 0.0])},
        device_model={SOC: device_model_block(path, get_soc(SOC), compiled)},
    )


@pytest.fixture(scope="module")
def good(contents, tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("good") / "m.qnn", contents)


def test_equal_contents_give_equal_bytes(contents, good, tmp_path):
    again = write_artifact(tmp_path / "other.qnn", contents)
    assert again.path.read_bytes() == good.path.read_bytes()
    assert again.sha256 == hashlib.sha256(good.path.read_bytes()).hexdigest()


def test_any_unzip_reads_it(contents, good):
    with zipfile.ZipFile(good.path) as z:
        assert z.testzip() is None
        assert z.namelist() == [
            "manifest.json",
            "model.onnx",
            f"contexts/{SOC}/context.onnx",
            f"contexts/{SOC}/context.bin",
            "encodings.json",
            f"golden/{SOC}/0000.npz",
            f"golden/{SOC}/0001.npz",
            "report/layers.json",
            "quality/scores.npz",
        ]
        binary = z.read(f"contexts/{SOC}/context.bin")
        assert {i.date_time for i in z.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert binary == contents.contexts[SOC].context_bin.read_bytes()


def test_contents_come_back(contents, good):
    opened = open_artifact(good.path)
    assert opened.manifest == good.manifest
    assert opened.socs == (SOC,)
    assert opened.manifest["model"]["fingerprint"] == contents.model.fingerprint
    assert opened.manifest["notes"] == ["a note"]
    assert opened.manifest["quality"]["htp_emulator"]["sqnr_db"] is None
    entry = opened.soc(SOC)
    assert (entry["soc_model"], entry["arch"]) == (57, 75)
    assert entry["figures"] == dataclasses.asdict(contents.contexts[SOC].figures)
    assert opened.arrays("quality/scores.npz")["htp_emulator"].tolist() == [1.0, 0.0]
    encodings = json.loads(opened.read("encodings.json"))
    assert encodings["tensors"]["x"]["bits"] == 8
    feeds, outputs = contents.goldens[SOC]
    for (inputs, expected), feed, output in zip(opened.goldens(SOC), feeds, outputs, strict=True):
        np.testing.assert_array_equal(inputs["x"], feed["x"])
        np.testing.assert_array_equal(expected["y"], output["y"])


def test_extract_gives_the_device_its_files_and_no_others(good, tmp_path):
    folder = good.extract(tmp_path, SOC)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert folder == tmp_path / good.sha256
    assert files == [
        f"contexts/{SOC}/context.bin",
        f"contexts/{SOC}/context.onnx",
        f"golden/{SOC}/0000.npz",
        f"golden/{SOC}/0001.npz",
        "manifest.json",
    ]
    assert good.extract(tmp_path, SOC) == folder
    assert [p.name for p in tmp_path.iterdir()] == [good.sha256]
    with pytest.raises(UserError, match=f"no context for sm8550, only for {SOC}"):
        good.extract(tmp_path, "sm8550")


def test_a_context_of_another_part_is_refused_before_it_is_loaded(contents, tmp_path):
    """Every checksum is right and the manifest claims what it should: only the binary tells."""
    foreign = compile_context(
        contents.model_onnx, get_soc("sm8550"), HtpOptions(), tmp_path / "foreign"
    )
    own = contents.contexts[SOC]
    swapped = dataclasses.replace(own, context_bin=foreign.context_bin)
    made = write_artifact(
        tmp_path / "m.qnn", dataclasses.replace(contents, contexts={SOC: swapped})
    )
    assert open_artifact(made.path).soc(SOC)["soc_model"] == 57
    with pytest.raises(UserError, match="the context filed under sm8650 is for sm8550"):
        made.extract(tmp_path / "dest", SOC)
    assert list((tmp_path / "dest").iterdir()) == []


def test_a_member_that_changes_after_opening_is_noticed(good, tmp_path):
    path = tmp_path / "m.qnn"
    path.write_bytes(good.path.read_bytes())
    opened = open_artifact(path)
    data = bytearray(path.read_bytes())
    data[opened.members[f"contexts/{SOC}/context.bin"].offset + 9000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="changed while it was read"):
        opened.extract(tmp_path / "dest", SOC)
    assert list((tmp_path / "dest").iterdir()) == []


def test_download_size_is_that_of_deflate(tmp_path):
    (tmp_path / "a").write_bytes(b"\0" * 3_000_000)
    (tmp_path / "b").write_bytes(random.Random(0).randbytes(100_000))
    assert download_bytes(tmp_path / "a") == len(zlib.compress(b"\0" * 3_000_000, 6))
    assert download_bytes(tmp_path / "a", tmp_path / "b") > 100_000


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        open_artifact(path)
    return caught.value.message


def flip(data, position, bit=0):
    out = bytearray(data)
    out[position] ^= 1 << bit
    return bytes(out)


def test_a_flip_in_every_member_is_found(good, tmp_path):
    data = good.path.read_bytes()
    for name, member in good.members.items():
        message = refused(tmp_path / "m.qnn", flip(data, member.offset + member.size // 2))
        assert name in message


def test_a_flip_in_every_byte_outside_the_data_is_found(good, tmp_path):
    """Every field of every local header, of the central directory and of the end record."""
    data = good.path.read_bytes()
    inside = bytearray(len(data))
    for member in good.members.values():
        inside[member.offset : member.offset + member.size] = b"\1" * member.size
    outside = [i for i, flag in enumerate(inside) if not flag]
    assert len(outside) > 9 * (30 + 46)
    for position in outside:
        assert refused(tmp_path / "m.qnn", flip(data, position, position % 8))


def test_a_hundred_random_flips_are_found(good, tmp_path):
    data, rng = good.path.read_bytes(), random.Random(7)
    for _ in range(100):
        assert refused(tmp_path / "m.qnn", flip(data, rng.randrange(len(data)), rng.randrange(8)))


def test_truncation_and_appended_bytes(good, tmp_path):
    data = good.path.read_bytes()
    rng = random.Random(3)
    for size in [0, 1, 3, 4, 29, 30, len(data) - 1, *rng.sample(range(len(data)), 20)]:
        assert "truncated" in refused(tmp_path / "m.qnn", data[:size])
    assert "follows its end" in refused(tmp_path / "m.qnn", data + b"\0")
    assert "does not begin" in refused(tmp_path / "m.qnn", b"PK\x05\x06" + bytes(100))


def raw_archive(members):
    """An archive with correct headers for any names, as an attacker would make it."""
    body, central = b"", b""
    for name, content in members:
        raw, crc = name.encode(), zlib.crc32(content)
        central += archive._central_header(raw, len(content), crc, len(body))
        body += archive._local_header(raw, len(content), crc) + content
    return body + central + archive._end(len(members), len(central), len(body))


def parts(good):
    return {name: good.read(name) for name in good.members}


def with_manifest(good, change):
    """The archive with a changed manifest and everything else in order."""
    files = parts(good)
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    files[MANIFEST] = json.dumps(manifest).encode()
    return raw_archive(files.items())


def test_rebuilding_by_hand_gives_a_valid_archive(good, tmp_path):
    """So that the refusals below are for the reason given and for no other."""
    (tmp_path / "m.qnn").write_bytes(raw_archive(parts(good).items()))
    assert open_artifact(tmp_path / "m.qnn").sha256 == good.sha256
    (tmp_path / "m.qnn").write_bytes(with_manifest(good, lambda m: None))
    assert open_artifact(tmp_path / "m.qnn").manifest == good.manifest


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", ".hidden", "a//b", "ä"])
def test_unsafe_names(good, tmp_path, name):
    data = raw_archive([*parts(good).items(), (name, b"x")])
    assert "unsafe name" in refused(tmp_path / "m.qnn", data)


def test_double_names(good, tmp_path):
    data = raw_archive([*parts(good).items(), ("model.onnx", b"other")])
    assert "model.onnx twice" in refused(tmp_path / "m.qnn", data)


def test_member_the_manifest_does_not_list(good, tmp_path):
    data = raw_archive([*parts(good).items(), ("extra", b"x")])
    assert "not those the manifest lists" in refused(tmp_path / "m.qnn", data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "format version 2; this qhost reads up to 1"),
        (lambda m: m.update(format_version="1"), "no valid version"),
        (lambda m: m.update(format="other"), "of another kind"),
        (lambda m: m.pop("socs"), "lacks 'socs'"),
        (lambda m: m["members"]["model.onnx"].update(sha256="0" * 64), "manifest lists"),
        (lambda m: m["socs"][SOC].update(soc_model=43), "is for another SoC"),
        (lambda m: m["socs"].update(sm8550=m["socs"].pop(SOC)), "filed under sm8550"),
    ],
)
def test_manifest_that_does_not_fit(good, tmp_path, change, message):
    assert message in refused(tmp_path / "m.qnn", with_manifest(good, change))


def test_manifest_first_and_json(good, tmp_path):
    files = parts(good)
    moved = [*((n, d) for n, d in files.items() if n != MANIFEST), (MANIFEST, files[MANIFEST])]
    assert "does not begin with a manifest" in refused(tmp_path / "m.qnn", raw_archive(moved))
    for bad in (b"{", b"[]", b"\xff", b"[" * 100_000):
        data = raw_archive([(MANIFEST, bad)])
        assert "manifest" in refused(tmp_path / "m.qnn", data)


def test_bombs(good, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(MANIFEST, b"\0" * 50_000_000)
    assert "header at byte 0" in refused(tmp_path / "m.qnn", buffer.getvalue())
    # A member that claims 4 GB it does not have: refused without allocating them.
    head = archive._local_header(b"manifest.json", 0xFFFF_FFF0, 0)
    assert "truncated" in refused(tmp_path / "m.qnn", head + bytes(100))
    # An .npz inside that would expand when it is loaded.
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x.npy", npz_bytes({"x": np.zeros(1000)}))
    files = parts(good)
    files["quality/scores.npz"] = inner.getvalue()
    manifest = json.loads(files[MANIFEST])
    manifest["members"]["quality/scores.npz"] = {
        "size": len(inner.getvalue()),
        "sha256": hashlib.sha256(inner.getvalue()).hexdigest(),
    }
    files[MANIFEST] = json.dumps(manifest).encode()
    (tmp_path / "m.qnn").write_bytes(raw_archive(files.items()))
    with pytest.raises(UserError, match="is compressed"):
        open_artifact(tmp_path / "m.qnn").arrays("quality/scores.npz")


def test_overlapping_directory_entries(good, tmp_path):
    """A central directory that points twice at one member, which some readers accept."""
    data = good.path.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<LL", data, end + 12)
    twice = data[start : start + size] * 2
    forged = data[:start] + twice + archive._end(2 * len(good.members), len(twice), start)
    assert "directory does not match" in refused(tmp_path / "m.qnn", forged)


def test_failed_write_leaves_the_old_file(contents, good, tmp_path):
    path = tmp_path / "m.qnn"
    path.write_bytes(b"old")
    gone = dataclasses.replace(
        contents.contexts[SOC], context_bin=contents.model_onnx.parent / "gone.bin"
    )
    with pytest.raises((UserError, FileNotFoundError)):
        write_artifact(path, dataclasses.replace(contents, contexts={SOC: gone}))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.qnn"]


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        open_artifact(tmp_path / "none.qnn")
