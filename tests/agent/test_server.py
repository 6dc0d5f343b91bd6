"""The wire: who may call, which names and sizes pass, what comes back."""

from __future__ import annotations

import json
import random
import socket

import grpc
import pytest

from protos import agent_pb2 as pb
from protos import agent_pb2_grpc

METHODS = [
    ("Describe", pb.DescribeRequest(protocol_version=1)),
    ("Status", pb.StatusRequest()),
    ("Start", pb.StartRequest()),
    ("Ack", pb.AckRequest()),
    ("Cancel", pb.CancelRequest()),
    ("Subscribe", pb.SubscribeRequest()),
    ("Fetch", pb.FetchRequest(name="logs/agent.log")),
    ("PutArtifact", None),
]


def invoke(agent, method, request, metadata):
    reply = getattr(agent.stub, method)(
        iter(()) if request is None else request, timeout=10, metadata=metadata
    )
    return list(reply) if method in ("Subscribe", "Fetch") else reply


@pytest.mark.parametrize(("method", "request_"), METHODS, ids=[m for m, _ in METHODS])
@pytest.mark.parametrize("token", [None, "Bearer wrong", "", "Bearer "])
def test_without_the_token_every_call_is_refused_and_tells_nothing(agent, method, request_, token):
    metadata = (("x-qhost-protocol", "1"),)
    if token is not None:
        metadata += (("authorization", token),)
    with pytest.raises(grpc.RpcError) as refused:
        invoke(agent, method, request_, metadata)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refused.value.details() == ""


@pytest.mark.parametrize("version", ["2", "", "x", "-1", "1.0"])
def test_another_protocol_version_is_refused_naming_both(agent, version):
    metadata = (agent.metadata[0], ("x-qhost-protocol", version))
    with pytest.raises(grpc.RpcError) as refused:
        agent.stub.Status(pb.StatusRequest(), timeout=10, metadata=metadata)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "agent speaks 1" in refused.value.details()


def test_describe_checks_the_version_in_the_request(agent):
    with pytest.raises(grpc.RpcError) as refused:
        agent.call("Describe", pb.DescribeRequest(protocol_version=7))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "protocol 7" in refused.value.details()
    assert "speaks 1" in refused.value.details()


def test_describe_says_that_and_how_it_is_emulated(agent):
    d = agent.call("Describe", pb.DescribeRequest(protocol_version=1))
    assert d.substrate == pb.EMULATED
    assert "model" in d.emulation_basis
    assert (d.device.soc, d.device.soc_model, d.device.htp_arch) == ("sm8650", 57, 75)
    assert d.fingerprint["soc_id"] == "557"
    assert d.fingerprint["governor"] == "walt"
    assert d.fingerprint["build"] == d.device.build
    assert [c.id for c in d.channels] == list(range(1, len(d.channels) + 1))
    assert len({c.name for c in d.channels}) == len(d.channels)
    assert all(c.unit and c.method and c.source and c.nominal_rate_hz for c in d.channels)


@pytest.mark.parametrize(
    "name",
    [
        "../token",
        "/etc/passwd",
        "logs/../token",
        "token",
        "spool/acked",
        "logs",
        "",
        ".",
        "logs//a",
    ],
)
def test_fetch_gives_nothing_outside_logs_and_outputs(agent, name):
    with pytest.raises(grpc.RpcError) as refused:
        list(agent.call("Fetch", pb.FetchRequest(name=name)))
    assert refused.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    )  # fmt: skip


def test_fetch_does_not_follow_a_link_out_of_the_root(agent):
    (agent.root / "logs" / "link").symlink_to(agent.root / "token")
    with pytest.raises(grpc.RpcError) as refused:
        list(agent.call("Fetch", pb.FetchRequest(name="logs/link")))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_fetch_streams_a_file_in_chunks(agent):
    data = random.Random(1).randbytes(3_000_000)
    (agent.root / "logs" / "big.bin").write_bytes(data)
    chunks = list(agent.call("Fetch", pb.FetchRequest(name="logs/big.bin")))
    assert len(chunks) == 3
    assert b"".join(c.data for c in chunks) == data


def test_put_artifact_delivers_once_and_status_lists_it(agent, artifact_files, chunks):
    sha = "1" * 64
    first = agent.call("PutArtifact", chunks(artifact_files, sha))
    again = agent.call("PutArtifact", chunks(artifact_files, sha))
    assert (first.already_present, again.already_present) == (False, True)
    assert sha in agent.call("Status", pb.StatusRequest()).artifacts
    for name, data in artifact_files.items():
        assert (agent.root / "artifacts" / sha / name).read_bytes() == data


def header(sha="2" * 64, total=3):
    return pb.ArtifactChunk(header=pb.ArtifactHeader(sha256=sha, total_bytes=total))


def file(name="manifest.json", size=3, sha="0" * 64):
    return pb.ArtifactChunk(file=pb.FileHeader(name=name, size=size, sha256=sha))


def data(content=b"{}\n"):
    return pb.ArtifactChunk(data=content)


SHA_OF_DATA = "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [file()],
        [header(sha="../../x")],
        [header(), data()],
        [header(), file(), data()],  # another sha256
        [header(), file(sha=SHA_OF_DATA), data(b"{}")],  # too short
        [header(), file(sha=SHA_OF_DATA), data(b"{}\n ")],  # too long
        [header(total=9), file(sha=SHA_OF_DATA), data()],  # bytes missing in the whole
        [header(), file(name="../manifest.json", sha=SHA_OF_DATA), data()],
        [header(), file(name="/tmp/x", sha=SHA_OF_DATA), data()],
        [header(), file(name="other.json", sha=SHA_OF_DATA), data()],  # no manifest
        [header(total=6), file(sha=SHA_OF_DATA), data(), file(sha=SHA_OF_DATA), data()],
        [header(total=1 << 60)],
    ],
)
def test_put_artifact_refuses_what_is_wrong_and_keeps_nothing(agent, messages):
    with pytest.raises(grpc.RpcError) as refused:
        agent.call("PutArtifact", iter(messages))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "2" * 64 not in agent.call("Status", pb.StatusRequest()).artifacts
    assert not list((agent.root / "artifacts").glob("*.part"))


def test_put_artifact_accepts_the_same_bytes_when_they_are_right(agent):
    sha = "3" * 64
    agent.call("PutArtifact", iter([header(sha=sha), file(sha=SHA_OF_DATA), data()]))
    assert json.loads((agent.root / "artifacts" / sha / "manifest.json").read_text()) == {}


def test_mutated_requests_do_not_end_the_agent(agent, block_segment, artifact):
    """Random bytes changed in valid messages, sent to every unary method."""
    rng = random.Random(7)
    good = {
        "Start": pb.StartRequest(session_id="s", segments=[block_segment(artifact)]),
        "Ack": pb.AckRequest(seq=3),
        "Fetch": pb.FetchRequest(name="logs/agent.log"),
        "PutArtifact": header(),
        "Describe": pb.DescribeRequest(protocol_version=1),
    }
    for _ in range(400):
        method = rng.choice(list(good))
        payload = bytearray(good[method].SerializeToString())
        for _ in range(rng.randint(1, 4)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
        call = agent.channel.stream_stream(f"/qhost.agent.v1.Agent/{method}")
        try:
            list(call(iter([bytes(payload)]), timeout=10, metadata=agent.metadata))
        except grpc.RpcError as error:
            assert error.code() is not grpc.StatusCode.UNAVAILABLE
    agent.call("Cancel", pb.CancelRequest())
    assert agent.call("Describe", pb.DescribeRequest(protocol_version=1)).protocol_version == 1


def test_bytes_that_are_no_http2_do_not_end_the_agent(agent):
    host, port = agent.ready["address"].split(":")
    for seed in range(5):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(random.Random(seed).randbytes(2000))
    assert agent.call("Status", pb.StatusRequest()).clock_ns > 0


def test_frequent_keepalive_pings_are_tolerated(agent):
    channel = grpc.insecure_channel(
        agent.ready["address"],
        [
            ("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_timeout_ms", 2000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )  # fmt: skip
    stub = agent_pb2_grpc.AgentStub(channel)
    stream = stub.Subscribe(
        pb.SubscribeRequest(from_seq=agent.call("Status", pb.StatusRequest()).next_seq),
        timeout=3.5,
        metadata=agent.metadata,
    )
    with pytest.raises(grpc.RpcError) as ended:
        list(stream)
    channel.close()
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
