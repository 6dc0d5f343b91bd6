"""10,000 mutated requests with the right token: the agent answers on, and stays inside."""

import random
from pathlib import Path

import grpc

from protos import agent_pb2 as pb

SERVICE = "/qhost.agent.v1.Agent/"
UNARY = {
    "Describe": pb.DescribeRequest(protocol_version=1, host_version="0.1.0"),
    "Status": pb.StatusRequest(),
    "Start": pb.StartRequest(
        session_id="s",
        segments=[
            pb.Segment(run_id="r", artifact="ab" * 32, soc="sm8650", kind=pb.CHECK),
            pb.Segment(run_id="../r", artifact="../../x", soc="..", kind=pb.BLOCK),
            pb.Segment(run_id="e", artifact="cd" * 32, kind=pb.EVALUATE, inputs="../../etc"),
        ],
    ),
    "Ack": pb.AckRequest(seq=1),
    "Cancel": pb.CancelRequest(run_id="r"),
}
STREAMED = {"Fetch": pb.FetchRequest(name="logs/agent.log")}
NAMES = (b"../../../etc/passwd", b"/etc/passwd", b"..", b"a/../../b", b"\0", b"x" * 5000)
REQUESTS = 10_000
BATCH = 250


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat or splice; one in eight names a path outside."""
    if rng.random() < 0.125:
        name = rng.choice(NAMES)
        return b"\x0a" + bytes([len(name) & 0x7F]) + name[: len(name) & 0x7F]
    changed = bytearray(data or b"\x08\x01")
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(4):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + rng.randrange(1, 8)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 16))
            case _:
                changed += changed[at:]
    return bytes(changed[:100_000])


def test_mutated_requests_neither_crash_nor_leave_the_directory(start_agent) -> None:
    agent = start_agent()
    rng = random.Random(7)
    secret = Path("/etc/passwd").read_bytes()[:32]
    messages = {name: m.SerializeToString() for name, m in (UNARY | STREAMED).items()}
    unary = {name: agent.channel.unary_unary(SERVICE + name) for name in UNARY}
    streams = {name: agent.channel.unary_stream(SERVICE + name) for name in STREAMED}
    codes: set[grpc.StatusCode] = set()
    for _ in range(REQUESTS // BATCH):
        calls, futures = [], set()
        for _ in range(BATCH):
            name = rng.choice(list(messages))
            data = mutated(rng, messages[name])
            if name in unary:
                calls.append(unary[name].future(data, timeout=60, metadata=agent.metadata))
                futures.add(calls[-1])
            else:
                calls.append(streams[name](data, timeout=60, metadata=agent.metadata))
        for call in calls:
            try:
                reply = call.result() if call in futures else b"".join(call)
                assert secret not in reply
                codes.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.add(error.code())
    assert agent.process.poll() is None
    assert agent.call("Describe", pb.DescribeRequest(protocol_version=1)).agent_version
    assert grpc.StatusCode.INVALID_ARGUMENT in codes or grpc.StatusCode.NOT_FOUND in codes
    assert grpc.StatusCode.UNAVAILABLE not in codes
    assert {p.name for p in agent.root.parent.iterdir()} == {agent.root.name}
