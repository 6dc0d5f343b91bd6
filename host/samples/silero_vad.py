"""Silero VAD at 16 kHz: convolutions and an LSTM whose state is carried from frame to frame.

The graph is written anew from the published weights (its own export holds a hundred constant
nodes) and must answer as the published file does, or the build fails.

The task is speech or not, per frame of 512 samples with the previous 64 before it. Telephone
prompts in three languages (Asterisk's, 8 kHz, so upsampled) are mixed with white noise 15 dB below
the speech; a frame's label is whether the clean signal is louder than 35 dB below the prompt's loud
frames, so the silent ones are pauses, the hard case. Every frame is an independent sample: its
`state` input is the one that the float model reached there, so the figure holds one step's error,
not its accumulation.
"""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.signal import resample_poly

from host.errors import ToolchainError, UserError
from host.samples import MODEL_FILE, RECIPES, fetch
from host.samples.check import float_figure, session, write_task
from host.samples.graph import GraphBuilder
from host.samples.transformer import integers

PACKAGE = "silero-vad==6.2.3"
PUBLISHED = "silero_vad/data/silero_vad_openvino_16k.onnx"
# Debian package by the folder of its voice.
VOICES = {
    "en_US_f_Allison": "asterisk-core-sounds-en-wav",
    "es_MX_f_Allison": "asterisk-core-sounds-es-wav",
    "fr_CA_f_June": "asterisk-core-sounds-fr-wav",
}
SOUNDS = "usr/share/asterisk/sounds"
INDICES = Path(__file__).parent / "data" / "silero_vad.json"
FRAME, CONTEXT, HIDDEN = 512, 64, 128
NOISE_DB, QUIET_DB = -15.0, -35.0
EVALUATION_FRAMES, CALIBRATION_FRAMES = 2000, 256
SEED = 41
_TOLERANCE = 1e-5

Array = NDArray[Any]


def build(work: Path, output: Path) -> str:
    package = fetch.pip_package(PACKAGE, work)
    published = fetch.member(package, PUBLISHED)
    onnx.save(to_onnx(_weights(onnx.load(published))), output / MODEL_FILE)
    ours, theirs = session(output / MODEL_FILE), session(published)
    indices = json.loads(INDICES.read_text())
    rng = np.random.default_rng(SEED)
    splits = {}
    for split, count in (("evaluation", EVALUATION_FRAMES), ("calibration", CALIBRATION_FRAMES)):
        parts = [_frames(_read(work, name), rng, ours, theirs) for name in indices[split]]
        frames, states, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        drawn = rng.permutation(len(frames))[:count]
        splits[split] = frames[drawn], states[drawn], labels[drawn]
    frames, states, labels = splits["evaluation"]
    write_task(
        output,
        RECIPES["silero-vad"],
        {"input": frames, "state": states},
        labels,
        {"input": splits["calibration"][0], "state": splits["calibration"][1]},
    )
    return float_figure(output)


def _frames(clean: Array, rng: np.random.Generator, ours: Any, theirs: Any) -> tuple[Array, ...]:
    """clean (samples,) -> frames (N, 576), states (N, 2, 1, 128), labels (N,)."""
    count = len(clean) // FRAME
    clean = clean[: count * FRAME]
    loudness = np.sqrt(np.mean(clean.reshape(count, FRAME) ** 2, axis=1))
    speech = loudness > np.percentile(loudness, 95) * 10 ** (QUIET_DB / 20)
    power = np.mean(clean.reshape(count, FRAME)[speech] ** 2)
    noise = rng.standard_normal(len(clean)) * np.sqrt(power * 10 ** (NOISE_DB / 10))
    heard = np.concatenate([np.zeros(CONTEXT), clean + noise]).astype(np.float32)
    state = np.zeros((2, 1, HIDDEN), np.float32)
    frames, states = [], []
    for number in range(count):
        frame = heard[number * FRAME : (number + 1) * FRAME + CONTEXT]
        frames.append(frame)
        states.append(state)
        feed = {"input": frame[None], "state": state}
        score, state = ours.run(["speech", "next_state"], feed)
        expected, expected_state = theirs.run(None, feed)
        error = max(np.abs(score - expected).max(), np.abs(state - expected_state).max())
        if error > _TOLERANCE:
            raise ToolchainError(f"The rebuilt Silero VAD is {error:.2g} away from {PUBLISHED}.")
    return np.stack(frames), np.stack(states), speech.astype(np.int64)


def _read(work: Path, name: str) -> Array:
    """A prompt ("voice/file") at 16 kHz, -1..1."""
    voice = name.split("/")[0]
    folder = f"{SOUNDS}/{voice}"
    root = fetch.debian_package(VOICES[voice], folder, work)
    path = fetch.member(root, f"{SOUNDS}/{name}")
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getsampwidth(), file.getnchannels()) != (8000, 2, 1):
            raise UserError(f"{path} is not 8 kHz mono 16-bit.", "Another release of the package?")
        raw = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    resampled: Array = resample_poly(raw / 32768, 2, 1)
    return resampled


def _weights(published: onnx.ModelProto) -> dict[str, Array]:
    """The constants with a name of their own, e.g. "encoder.0.reparam_conv.weight"."""
    out = {}
    for node in published.graph.node:
        name = node.output[0].split("__Inline_0__")[-1]
        if node.op_type == "Constant" and "/" not in name:
            out[name] = numpy_helper.to_array(node.attribute[0].t)
    return out


def to_onnx(weights: dict[str, Array]) -> onnx.ModelProto:
    """input (1, 576), state (2, 1, 128) -> speech (1, 1) probability, next_state (2, 1, 128)."""
    graph = GraphBuilder("silero_vad")
    audio = graph.input("input", np.float32, (1, FRAME + CONTEXT))
    state = graph.input("state", np.float32, (2, 1, HIDDEN))
    x = _spectrum(graph, audio, weights["stft.forward_basis_buffer"])
    for number, stride in enumerate((1, 2, 2, 1)):
        key, name = f"encoder.{number}.reparam_conv", f"encoder{number}"
        x = _conv(graph, name, x, weights[f"{key}.weight"], weights[f"{key}.bias"], stride, 1)
        x = graph.node("Relu", [x], f"{name}.relu")
    hidden, next_state = _lstm(graph, weights, x, state)
    x = graph.node("Relu", [hidden], "decoder.relu")
    x = graph.node("Unsqueeze", [x, integers(graph, 2)], "decoder.column")
    key = "decoder.decoder.2"
    x = _conv(graph, "decoder", x, weights[f"{key}.weight"], weights[f"{key}.bias"], 1, 0)
    x = graph.node("Sigmoid", [x], "decoder.sigmoid")
    speech = graph.node("Reshape", [x, integers(graph, 1, 1)], "speech")
    return graph.build({speech: (1, 1), next_state: (2, 1, HIDDEN)})


def _conv(
    graph: GraphBuilder, name: str, x: str, weight: Array, bias: Array, stride: int, pad: int
) -> str:
    return graph.node(
        "Conv",
        [x, graph.parameter(f"{name}.weight", weight), graph.parameter(f"{name}.bias", bias)],
        name,
        kernel_shape=[weight.shape[2]],
        strides=[stride],
        pads=[pad, pad],
        dilations=[1],
        group=1,
    )


def _spectrum(graph: GraphBuilder, audio: str, basis: Array) -> str:
    """Magnitudes of a short-time Fourier transform, (1, 129, 4), by a fixed convolution."""
    bins = len(basis) // 2
    pads = graph.parameter("stft.pads", np.array([0, 0, 0, CONTEXT], np.int64))
    padded = graph.node("Pad", [audio, pads], "stft.padded", mode="reflect")
    signal = graph.node("Unsqueeze", [padded, integers(graph, 1)], "stft.signal")
    parts = graph.node(
        "Conv",
        [signal, graph.parameter("stft.weight", basis)],
        "stft",
        kernel_shape=[basis.shape[2]],
        strides=[128],
        pads=[0, 0],
        dilations=[1],
        group=1,
    )
    squares = []
    for part, start in (("real", 0), ("imaginary", bins)):
        ends = integers(graph, start), integers(graph, start + bins), integers(graph, 1)
        half = graph.node("Slice", [parts, *ends], f"stft.{part}")
        squares.append(graph.node("Mul", [half, half], f"stft.{part}.square"))
    power = graph.node("Add", squares, "stft.power")
    return graph.node("Sqrt", [power], "stft.magnitude")


def _lstm(graph: GraphBuilder, weights: dict[str, Array], x: str, state: str) -> tuple[str, str]:
    """x (1, 128, 1), state (2, 1, 128) -> hidden (1, 128), next state (2, 1, 128)."""

    def gates(key: str) -> Array:
        """PyTorch stacks input, forget, cell, output; ONNX input, output, forget, cell."""
        i, f, c, o = np.split(weights[f"decoder.rnn.{key}"], 4)
        return np.concatenate([i, o, f, c])

    bias = np.concatenate([gates("bias_ih"), gates("bias_hh")])
    sequence = graph.node("Transpose", [x], "lstm.sequence", perm=(2, 0, 1))
    one = integers(graph, 1)
    h = graph.node("Slice", [state, integers(graph, 0), one, integers(graph, 0)], "lstm.previous_h")
    c = graph.node("Slice", [state, one, integers(graph, 2), integers(graph, 0)], "lstm.previous_c")
    inputs = [
        sequence,
        graph.parameter("lstm.input.weight", gates("weight_ih")[None]),
        graph.parameter("lstm.recurrent.weight", gates("weight_hh")[None]),
        graph.parameter("lstm.bias", bias[None]),
        "",
        h,
        c,
    ]
    next_h, next_c = graph.nodes("LSTM", inputs, "lstm", ["", "h", "c"], hidden_size=HIDDEN)
    next_state = graph.node("Concat", [next_h, next_c], "next_state", axis=0)
    return graph.node("Squeeze", [next_h, integers(graph, 0)], "lstm.hidden"), next_state


def make_indices(work: Path) -> dict[str, object]:
    """How INDICES was drawn; the committed file is what counts."""
    rng = np.random.default_rng(SEED)
    evaluation: list[str] = []
    calibration: list[str] = []
    for voice, package in VOICES.items():
        root = fetch.debian_package(package, f"{SOUNDS}/{voice}", work) / SOUNDS
        # Prompts of a second or more; the short ones are letters and digits.
        names = sorted(
            f"{voice}/{path.name}"
            for path in (root / voice).glob("*.wav")
            if path.stat().st_size > 2 * 8000
        )
        drawn = [names[i] for i in rng.permutation(len(names))[:30]]
        evaluation += drawn[:20]
        calibration += drawn[20:]
    return {
        "dataset": f"Debian {', '.join(VOICES.values())}",
        "evaluation": evaluation,
        "calibration": calibration,
    }
