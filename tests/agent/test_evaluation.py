"""EVALUATE: the outputs of every sample of an input set, as files that a host fetches."""

import io
import json

import numpy as np
import pytest

from protos import agent_pb2 as pb


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def goldens(files: dict[str, bytes]) -> list[tuple[dict, dict]]:
    found = []
    for name in sorted(n for n in files if n.startswith("golden/")):
        arrays = dict(np.load(io.BytesIO(files[name])))
        pair = tuple(
            {k.removeprefix(p): v for k, v in arrays.items() if k.startswith(p)}
            for p in ("input/", "output/")
        )
        found.append(pair)
    return found


def input_set(arrays: dict[str, np.ndarray], **changes: object) -> dict[str, bytes]:
    files = {f"inputs/{i}.npy": npy(array) for i, array in enumerate(arrays.values())}
    manifest = {
        "format": "qhost-inputs",
        "inputs": dict(zip(arrays, files, strict=True)),
        **changes,
    }
    return {"manifest.json": json.dumps(manifest).encode(), **files}


def evaluate(agent, artifact: str, inputs: str, run_id: str) -> list[pb.Batch]:
    segment = pb.Segment(
        run_id=run_id, artifact=artifact, soc="sm8650", kind=pb.EVALUATE, inputs=inputs
    )
    reply = agent.call("Start", pb.StartRequest(session_id=run_id, segments=[segment]))
    return agent.follow(reply.first_seq, 1)


def fetched(agent, batch: pb.Batch) -> dict[str, np.ndarray]:
    out = {}
    for file in batch.evaluation.outputs:
        chunks = agent.stub.Fetch(pb.FetchRequest(name=file.file), metadata=agent.metadata)
        data = b"".join(chunk.data for chunk in chunks)
        assert len(data) == file.size
        out[file.tensor] = np.load(io.BytesIO(data), allow_pickle=False)
    return out


def test_every_sample_gives_what_the_emulator_gave(agent, artifact, artifact_files):
    pairs = goldens(artifact_files)
    (name,) = pairs[0][0]
    stacked = np.stack([pairs[i % len(pairs)][0][name] for i in range(20)])
    inputs = agent.put(input_set({name: stacked}))
    batches = evaluate(agent, artifact, inputs, "twenty")
    assert batches[-1].end.outcome == pb.OK
    progress, result = [b for b in batches if b.HasField("evaluation")]
    assert progress.evaluation.samples == 16 and not progress.evaluation.outputs
    assert result.evaluation.samples == 20
    found = fetched(agent, result)
    for i in range(20):
        for output, want in pairs[i % len(pairs)][1].items():
            np.testing.assert_array_equal(found[output][i], want)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "qhost-artifact"}, "is no input set"),
        ({"inputs": {}}, "is no input set"),
        ({"inputs": {"x": "../../../etc/hostname"}}, "is no readable .npy"),
        ({"inputs": {"x": "manifest.json"}}, "is no readable .npy"),
        ({"inputs": {"x": "inputs/0.npy", "y": "inputs/1.npy"}}, "no common number of samples"),
    ],
)
def test_a_set_that_is_none_fails_with_a_reason(agent, artifact, changes, words):
    arrays = {"x": np.zeros((3, 1, 4), np.float32), "y": np.zeros((2, 1, 4), np.float32)}
    inputs = agent.put(input_set(arrays, **changes))
    end = evaluate(agent, artifact, inputs, f"bad {words} {changes}")[-1].end
    assert (end.outcome, end.failure_class) == (pb.FAILED, "USER_ERROR")
    assert words in end.message


def test_samples_that_do_not_fit_the_graph_fail_and_leave_no_file(agent, artifact):
    inputs = agent.put(input_set({"nonsense": np.zeros((2, 5), np.float32)}))
    before = {p.name for p in (agent.root / "outputs").glob("*")}
    end = evaluate(agent, artifact, inputs, "misfit")[-1].end
    assert (end.outcome, end.failure_class) == (pb.FAILED, "DEVICE_ERROR")
    assert {p.name for p in (agent.root / "outputs").glob("*")} == before
