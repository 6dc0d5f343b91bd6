"""The recipes' own parts, without downloads: graphs against torch, tokenizers, fetching."""

from __future__ import annotations

import sys
import tarfile
import types
import wave

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from host import samples
from host.cli import main
from host.errors import UserError
from host.samples import (
    efficientnet_lite0,
    fashion,
    fetch,
    minilm,
    probe,
    silero_vad,
    small_gpt,
    two_tower,
)
from host.samples.bpe import Bpe
from host.samples.wordpiece import WordPiece

torch = pytest.importorskip("torch")


def session(model: onnx.ModelProto):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def test_small_gpt_graph_equals_what_was_trained():
    rng = np.random.default_rng(0)
    # Larger than initial weights, so that attention is far from uniform.
    weights = {k: v + rng.normal(0, 0.1, v.shape).astype("f") for k, v in _gpt_weights().items()}
    ids = rng.integers(0, small_gpt.VOCABULARY, (1, small_gpt.LENGTH))
    with torch.inference_mode():
        parameters = {k: torch.from_numpy(v) for k, v in weights.items()}
        expected = small_gpt._forward(parameters, torch.from_numpy(ids)).numpy()
    (logits,) = session(small_gpt.to_onnx(weights)).run(None, {"input_ids": ids})
    assert np.std(expected) > 0.1
    assert np.allclose(logits, expected, atol=1e-4)


def _gpt_weights():
    return small_gpt._initial()


def test_small_gpt_sees_no_future():
    run = session(small_gpt.to_onnx(_gpt_weights()))
    ids = np.arange(64)[None]
    changed = ids.copy()
    changed[0, 40:] += 100
    (before,), (after,) = (run.run(None, {"input_ids": i}) for i in (ids, changed))
    assert np.allclose(before[:, :40], after[:, :40], atol=1e-6)
    assert np.abs(before[:, 40:] - after[:, 40:]).max() > 1e-3


def _bert_weights(rng):
    def weight(*shape):
        return rng.normal(0, 0.1, shape).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": weight(50, 384),
        "embeddings.position_embeddings.weight": weight(512, 384),
        "embeddings.token_type_embeddings.weight": weight(2, 384),
        "embeddings.LayerNorm.weight": np.ones(384, np.float32),
        "embeddings.LayerNorm.bias": weight(384),
    }
    for layer in range(minilm.LAYERS):
        key = f"encoder.layer.{layer}"
        for name, shape in (
            ("attention.self.query", (384, 384)),
            ("attention.self.key", (384, 384)),
            ("attention.self.value", (384, 384)),
            ("attention.output.dense", (384, 384)),
            ("intermediate.dense", (1536, 384)),
            ("output.dense", (384, 1536)),
        ):
            weights[f"{key}.{name}.weight"] = weight(*shape)
            weights[f"{key}.{name}.bias"] = weight(shape[0])
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"{key}.{norm}.weight"] = np.ones(384, np.float32)
            weights[f"{key}.{norm}.bias"] = weight(384)
    return weights


@pytest.fixture(scope="module")
def bert_weights():
    return _bert_weights(np.random.default_rng(1))


def test_minilm_ignores_padding_and_has_unit_length(bert_weights):
    rng = np.random.default_rng(1)
    classifier = rng.normal(0, 0.1, (2, 384)).astype("f"), np.ones(2, np.float32)
    run = session(minilm.to_onnx(bert_weights, classifier))
    mask = np.zeros((1, 128), np.int64)
    mask[0, :20] = 1
    ids = rng.integers(0, 50, (1, 128))
    other = np.where(mask == 1, ids, (ids + 7) % 50)
    (logits, a), (_, b) = (
        run.run(None, {"input_ids": i, "attention_mask": mask}) for i in (ids, other)
    )
    assert np.allclose(a, b, atol=1e-6)
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
    assert np.allclose(logits, a @ classifier[0].T + classifier[1], atol=1e-5)
    ids[0, 3] = (ids[0, 3] + 1) % 50
    changed = run.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    assert np.abs(changed - a).max() > 1e-3


def test_two_tower_is_its_towers(bert_weights):
    rng = np.random.default_rng(6)
    projection = rng.normal(0, 0.1, (384, 256)).astype("f"), np.zeros(384, np.float32)
    image = rng.normal(0, 1, (1, 1, 28, 28)).astype("f")
    ids = rng.integers(0, 50, (10, 16))
    mask = (np.arange(16) < rng.integers(3, 17, (10, 1))).astype(np.int64)
    feed = {"image": image, "input_ids": ids, "attention_mask": mask}
    (logits,) = session(two_tower.to_onnx(bert_weights, projection)).run(None, feed)
    picture = two_tower._features(image)[0] @ projection[0].T
    picture /= np.linalg.norm(picture)
    whole = session(minilm.to_onnx(bert_weights, None))
    for number in range(10):  # MiniLM on 128 tokens gives what ten texts of 16 give
        padded = {
            "input_ids": np.pad(ids[number], (0, 112))[None],
            "attention_mask": np.pad(mask[number], (0, 112))[None],
        }
        text = whole.run(None, padded)[0][0]
        assert logits[0, number] == pytest.approx(20 * float(picture @ text), abs=1e-3)


def test_projection_reaches_captions_it_never_saw():
    rng = np.random.default_rng(7)
    meanings = rng.normal(0, 1, (4, 16))
    owner = np.repeat(np.arange(4), 6)
    vectors = meanings[owner] + rng.normal(0, 0.3, (24, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(0, 4, 200)
    looks = rng.normal(0, 2, (4, 5))
    features = looks[labels] + rng.normal(0, 0.2, (200, 5))
    weight, bias = two_tower.fit_projection(features, labels, vectors, owner)
    scores = (features @ weight.T + bias) @ meanings.T
    assert (scores.argmax(1) == labels).mean() > 0.95


def test_silero_lstm_has_torchs_gates():
    rng = np.random.default_rng(2)
    lstm = torch.nn.LSTMCell(128, 128)
    weights = {f"decoder.rnn.{k}": v.detach().numpy() for k, v in lstm.named_parameters()}
    weights["stft.forward_basis_buffer"] = rng.normal(0, 0.1, (258, 1, 256)).astype("f")
    for number, (outputs, inputs) in enumerate(((128, 129), (64, 128), (64, 64), (128, 64))):
        key = f"encoder.{number}.reparam_conv"
        weights[f"{key}.weight"] = rng.normal(0, 0.1, (outputs, inputs, 3)).astype("f")
        weights[f"{key}.bias"] = rng.normal(0, 0.1, outputs).astype("f")
    weights["decoder.decoder.2.weight"] = rng.normal(0, 0.1, (1, 128, 1)).astype("f")
    weights["decoder.decoder.2.bias"] = np.zeros(1, np.float32)
    model = silero_vad.to_onnx(weights)
    encoded = onnx.helper.make_tensor_value_info("encoder3.relu", 1, [1, 128, 1])
    model.graph.output.append(encoded)
    audio = rng.normal(0, 0.1, (1, 576)).astype("f")
    state = rng.normal(0, 0.5, (2, 1, 128)).astype("f")
    speech, next_state, features = session(model).run(None, {"input": audio, "state": state})
    with torch.inference_mode():
        h, c = lstm(
            torch.from_numpy(features[:, :, 0]),
            (torch.from_numpy(state[0]), torch.from_numpy(state[1])),
        )
    assert np.allclose(next_state, np.stack([h, c]), atol=1e-5)
    logit = np.maximum(h.numpy(), 0) @ weights["decoder.decoder.2.weight"][0, :, 0]
    assert speech.item() == pytest.approx(1 / (1 + np.exp(-logit.item())), abs=1e-5)


def test_silero_labels_follow_the_clean_signal():
    class Constant:
        def run(self, _names, _feed):
            return np.full((1, 1), 0.5, "f"), np.ones((2, 1, 128), "f")

    tone = np.sin(np.arange(512 * 4) * 0.1)
    clean = np.concatenate([tone, np.zeros(512 * 2), tone * 10 ** (-40 / 20)])
    rng = np.random.default_rng(3)
    frames, states, labels = silero_vad._frames(clean, rng, Constant(), Constant())
    assert labels.tolist() == [1] * 4 + [0] * 6
    assert frames.shape == (10, 576)
    assert np.array_equal(frames[1, :64], frames[0, -64:])  # context of the previous frame
    assert states[0].max() == 0
    assert states[1].min() == 1
    noise = frames[4:6, 64:].std()
    assert 20 * np.log10(noise / tone.std()) == pytest.approx(-15, abs=0.5)


def test_wave_of_another_rate_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "debian-p" / silero_vad.SOUNDS / "v"
    folder.mkdir(parents=True)
    monkeypatch.setitem(silero_vad.VOICES, "v", "p")
    with wave.open(str(folder / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(20))
    with pytest.raises(UserError, match="not 8 kHz"):
        silero_vad._read(tmp_path, "v/x.wav")
    with pytest.raises(UserError, match="has no"):
        silero_vad._read(tmp_path, "v/y.wav")


def test_preprocess_resizes_as_pillow_does():
    image = np.random.default_rng(4).integers(90, 160, (28, 28)).astype(np.uint8)
    resized = Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized, np.float32)[16:240, 16:240]
    got = efficientnet_lite0.preprocess(image[None])
    assert got.shape == (1, 3, 224, 224)
    # Pillow rounds to bytes (and clips) between the two passes as well.
    assert np.abs(got[0, 1] * 128 + 127 - expected).max() <= 2
    assert np.array_equal(got, got.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [(224, 3, 2, [0, 0, 1, 1]), (112, 5, 2, [1, 1, 2, 2]), (14, 5, 1, [2, 2, 2, 2])],
)
def test_same_pads(size, kernel, stride, pads):
    assert efficientnet_lite0._same_pads(size, kernel, stride) == pads


def test_probe_separates_what_is_separable():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 300)
    centres = rng.normal(0, 3, (3, 8))
    features = (centres[labels] + rng.normal(0, 1, (300, 8))).astype("f")
    weight, bias = probe.fit(features, labels)
    assert (weight.shape, bias.shape) == ((3, 8), (3,))
    predicted = (features @ weight.T + bias).argmax(1)
    assert (predicted == labels).mean() > 0.97


def test_bpe_learns_the_most_frequent_pairs():
    words = ["low"] * 5 + ["lower"] * 2 + ["new"] * 3
    bpe = Bpe.train(words, vocabulary=7 + 3)
    # Seven characters (with the word mark); then l+o (7), lo+w (7), mark+low (7).
    assert len(bpe.encode(["low"])) == 1
    assert len(bpe.encode(["lower"])) == 3
    assert bpe.encode(["low", "low"]) == [9, 9]
    with pytest.raises(KeyError):
        bpe.encode(["zebra"])


def test_wordpiece():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "!", "cafe", "東"]
    pieces = WordPiece(vocabulary)
    assert pieces.tokens("UNaffable!  Café\t東\u200b") == [4, 5, 6, 7, 8, 9]
    assert pieces.tokens("unaffx " + "a" * 101) == [1, 1]
    ids, mask = pieces.encode(["!", "! ! ! ! !"], 5)
    assert ids.tolist() == [[2, 7, 3, 0, 0], [2, 7, 7, 7, 3]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    header = (
        b'{"__metadata__":{"format":"pt"},'
        b'"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
        b'"n":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}'
    )
    data = np.array([1.5, -2], "<f4").tobytes() + bytes(8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    tensors = minilm.read_safetensors(path)
    assert {k: v.tolist() for k, v in tensors.items()} == {"a": [[1.5], [-2]]}
    path.write_bytes(b"GGUF" * 10)
    with pytest.raises(UserError, match="not a safetensors"):
        minilm.read_safetensors(path)


def test_a_missing_package_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match=r"silero-vad==6.2.3 could not be fetched") as error:
        fetch.pip_package("silero-vad==6.2.3", tmp_path / "work")
    assert "\n" not in error.value.message
    assert list((tmp_path / "work").iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not installed"):
        fetch.debian_package("no-such-package", "no/such/file", tmp_path / "work")


def test_pip_package_unpacks_a_wheel_once(tmp_path, monkeypatch):
    import zipfile

    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/data.txt", "hello")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr(
            "thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    root = fetch.pip_package("thing==1.0", tmp_path / "work")
    assert fetch.member(root, "thing/data.txt").read_text() == "hello"
    wheel.unlink()
    assert fetch.pip_package("thing==1.0", tmp_path / "work") == root
    with pytest.raises(UserError, match=r"has no other\.txt"):
        fetch.member(root, "other.txt")


def test_extract_tar_refuses_to_leave_its_folder(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        entry = tarfile.TarInfo("../outside.txt")
        tar.addfile(entry)
    with pytest.raises(tarfile.OutsideDestinationError):
        fetch.extract_tar(archive, tmp_path / "in")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar"]


def test_build_leaves_nothing_half_written(tmp_path, monkeypatch):
    module = types.ModuleType("half_recipe")

    def fail(work, output):
        (output / "model.onnx").write_bytes(b"half")
        raise UserError("no data")

    module.build = fail
    monkeypatch.setitem(sys.modules, "half_recipe", module)
    row = samples.Recipe("half", "vision", "top1", "", "", "half_recipe")
    monkeypatch.setitem(samples.RECIPES, "half", row)
    target = tmp_path / "out"
    with pytest.raises(UserError, match="no data"):
        samples.build("half", target, tmp_path / "work")
    assert list(target.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out cannot be made: Not a directory"):
        samples.build("half", tmp_path / "file" / "out", tmp_path / "work")
    with pytest.raises(UserError, match="not built") as error:
        samples.get_sample("half", tmp_path)
    assert error.value.hint == "Build it: qhost samples build half"


def test_verbs(tmp_path, monkeypatch, capsys):
    module = types.ModuleType("whole_recipe")

    def write(work, output):
        (output / "model.onnx").write_bytes(b"model")
        (output / "task.npz").write_bytes(b"task")
        return "top1 0.5"

    module.build = write
    monkeypatch.setitem(sys.modules, "whole_recipe", module)
    row = samples.Recipe("whole", "vision", "top1", "a test", "no source", "whole_recipe")
    monkeypatch.setitem(samples.RECIPES, "whole", row)
    monkeypatch.setenv("QHOST_CACHE_DIR", str(tmp_path))
    assert main(["samples", "list"]) == 0
    assert state_of("whole", capsys.readouterr().out) == "not built"
    assert main(["samples", "build", "whole"]) == 0
    assert "whole: top1 0.5" in capsys.readouterr().out
    assert (tmp_path / "samples" / "whole" / "task.npz").read_bytes() == b"task"
    assert main(["samples", "list"]) == 0
    listed = capsys.readouterr().out
    assert state_of("whole", listed) == "built"
    assert state_of("fashion-cnn", listed) == "shipped"
    assert samples.get_sample("whole", tmp_path).model_path.read_bytes() == b"model"
    assert main(["samples", "build", "whol"]) == 1
    assert "Did you mean whole?" in capsys.readouterr().err


def state_of(name, listed):
    line = next(line for line in listed.splitlines() if line.startswith(f"{name} "))
    return [cell.strip() for cell in line.split("  ") if cell.strip()][3]


def test_missing_dataset_says_what_to_install(tmp_path):
    with pytest.raises(UserError) as error:
        fashion.load_split("train", tmp_path)
    assert "apt-get install dataset-fashion-mnist" in error.value.hint


def test_committed_indices_keep_the_splits_apart():
    import json

    lite = json.loads(efficientnet_lite0.INDICES.read_text())
    assert (len(lite["probe"]), len(lite["evaluation"])) == (2000, 1000)
    assert (lite["probe_split"], lite["calibration_split"], lite["evaluation_split"]) == (
        "train",
        "train",
        "test",
    )
    text = json.loads(minilm.INDICES.read_text())
    assert (len(text["probe"]), len(text["evaluation"])) == (1000, 400)
    assert not set(text["probe"]) & set(text["evaluation"])
    assert set(text["calibration"]) <= set(text["probe"])
    audio = json.loads(silero_vad.INDICES.read_text())
    assert not set(audio["evaluation"]) & set(audio["calibration"])
    assert len(audio["evaluation"]) == 60
    assert len(json.loads(small_gpt.INDICES.read_text())["evaluation"]) == 60
    wordings = json.loads(two_tower.INDICES.read_text())
    known, unseen = (
        {text for of_class in two_tower.captions(wordings[split]) for text in of_class}
        for split in ("training", "evaluation")
    )
    assert (len(known), len(unseen)) == (6 * 40, 4 * 10)
    assert not known & unseen
