"""A closed table of commands, for kernels that allow no sandbox.

No host program runs. A command line is words with `;`, `&&`, `||`, `&` and redirections, `$!` and
`$?`; no pipes, no other expansion. Paths are resolved inside the device's root. The one process
that can be started is the agent this emulator came with: what a host pushed is never executed.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.emulator import android_commands
from agent.emulator.adb.files import confined
from agent.emulator.adb.shell import STDERR, STDOUT, Output, Request

CONNECTORS = frozenset({";", "&&", "||", "&"})
REDIRECTIONS = frozenset({"<", ">", ">>", ">&"})
PROCESS_ROOT = Path(__file__).parents[3]  # where the package `agent` lies
_PR_SET_PDEATHSIG = 1


class CommandFailed(Exception):
    """A command ended with an error; the message goes to its standard error."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Simple:
    """One command with its redirections, and the connector that follows it."""

    words: list[str] = field(default_factory=list)
    redirects: dict[int, tuple[str, str]] = field(default_factory=dict)  # fd -> (operator, path)
    connector: str = ";"


def parse(line: str) -> list[Simple]:
    """ValueError for an unbalanced quote or an operator that the table lacks."""
    lexer = shlex.shlex(line.replace("\n", ";"), posix=True, punctuation_chars=";&|<>()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands, current = [], Simple()
    tokens = list(lexer)
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token in CONNECTORS:
            current.connector = token
            if current.words:
                commands.append(current)
            current = Simple()
        elif token in REDIRECTIONS:
            number = 0 if token == "<" else 1
            if token != "<" and current.words and current.words[-1] == "2":
                number = int(current.words.pop())
            if position == len(tokens):
                raise ValueError("redirection without a file")
            current.redirects[number] = (token, tokens[position])
            position += 1
        elif set(token) <= set(";&|<>()"):
            raise ValueError(f"{token} is not offered")
        else:
            current.words.append(token)
    if current.words:
        commands.append(current)
    return commands


@dataclass
class Context:
    """What one command sees."""

    root: Path
    cwd: str
    processes: dict[int, subprocess.Popen[bytes]]

    def path(self, name: str, *, follow: bool = True) -> Path:
        return confined(self.root)(name if name.startswith("/") else f"{self.cwd}/{name}", follow)


Command = Callable[[Context, list[str]], bytes]


def _reason(error: Exception, root: Path) -> str:
    """As toybox says it, by the device's own path: a host's path is none of the device's."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    path = str(error.filename or "").removeprefix(str(root.resolve()))
    return f"{path}: {error.strerror}" if path else error.strerror


class TableRunner:
    """Runs command lines from the table. The host's input is ignored."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # Abstract names are one namespace for the whole machine: ours get a prefix.
        self._prefix = f"qhost-{os.getpid()}-"

    def processes(self) -> list[int]:
        return [pid for pid, process in self._processes.items() if process.poll() is None]

    def abstract(self, name: str) -> str:
        return self._prefix + name

    async def run(self, request: Request, output: Output) -> int:
        if not request.command:
            await output.write(b"no interactive shell on this device\n", STDERR)
            return 1
        code = 0
        context = Context(self._root, "/", self._processes)
        last_pid = ""
        try:
            commands = parse(request.command)
        except ValueError as error:
            await output.write(f"sh: {error}\n".encode(), STDERR)
            return 2
        skip = False
        for command in commands:
            if not skip:
                special = {"$!": last_pid, "$?": str(code)}
                command.words = [special.get(word, word) for word in command.words]
                out, err = b"", b""
                try:
                    if command.connector == "&" or self._starts_agent(command.words):
                        last_pid = str(await self._start(context, command))
                        code = 0
                    else:
                        out = await asyncio.to_thread(_run, context, command.words)
                        code = 0
                except (CommandFailed, OSError, tarfile.TarError) as error:
                    code = error.code if isinstance(error, CommandFailed) else 1
                    err = f"{command.words[0]}: {_reason(error, self._root)}\n".encode()
                await self._deliver(context, command, output, out, err)
            skip = (command.connector == "&&" and code != 0) or (
                command.connector == "||" and code == 0
            )
        return code

    async def _deliver(
        self, context: Context, command: Simple, output: Output, out: bytes, err: bytes
    ) -> None:
        if command.redirects.get(STDERR) == (">&", "1"):
            out, err = out + err, b""
        for kind, data in ((STDOUT, out), (STDERR, err)):
            operator, name = command.redirects.get(kind, ("", ""))
            if name and name != "/dev/null" and operator in (">", ">>"):
                with context.path(name).open("ab" if operator == ">>" else "wb") as file:
                    file.write(data)
            elif data and name != "/dev/null":
                await output.write(data, kind)

    @staticmethod
    def _starts_agent(words: list[str]) -> bool:
        return "-m" in words and "agent" in words and "--listen" in words

    async def _start(self, context: Context, command: Simple) -> int:
        """The agent of this emulator, with the directories that the host named mapped."""
        if not self._starts_agent(command.words):
            raise CommandFailed("only the agent can be started on this device", 126)
        arguments = []
        for word in command.words[command.words.index("agent") + 1 :]:
            if word.startswith("unix-abstract:"):
                word = "unix-abstract:" + self.abstract(word.partition(":")[2])
            elif word.startswith("/"):
                word = str(context.path(word))
            arguments.append(word)
        _, log_name = command.redirects.get(STDOUT, (">", "/data/local/tmp/agent.log"))
        with context.path(log_name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agent", "--device-root", self._root, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._root,
                env={
                    "PATH": os.defpath,
                    "LC_ALL": "C.UTF-8",
                    "PYTHONPATH": str(PROCESS_ROOT),
                },
                start_new_session=True,
                preexec_fn=_die_with_parent,  # the emulator has no other thread that could fork
            )
        self._processes[process.pid] = process
        proc = self._root / f"proc/{process.pid}"
        proc.mkdir(parents=True, exist_ok=True)
        (proc / "cmdline").write_text("\0".join(command.words))
        return process.pid


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _run(context: Context, words: list[str]) -> bytes:
    while words and "=" in words[0].split("/")[0]:
        words = words[1:]  # an assignment for one command; none here reads the environment
    if not words:
        return b""
    name, *arguments = words
    name = name.rpartition("/")[2]
    if name in android_commands.COMMANDS:
        code, text = android_commands.COMMANDS[name](context.root, arguments)
        if code:
            raise CommandFailed(text.strip(), code)
        return text.encode()
    command = TABLE.get(name)
    if command is None:
        raise CommandFailed("not in this device's command table", 127)
    return command(context, arguments)


def _operands(arguments: list[str]) -> list[str]:
    return [a for a in arguments if not a.startswith("-") or a == "-"]


def _cat(context: Context, arguments: list[str]) -> bytes:
    return b"".join(context.path(name).read_bytes() for name in _operands(arguments))


def _cd(context: Context, arguments: list[str]) -> bytes:
    target = context.path(arguments[0])
    if not target.is_dir():
        raise CommandFailed(f"{arguments[0]}: No such directory")
    context.cwd = "/" + str(target.relative_to(context.root.resolve()))
    return b""


def _ls(context: Context, arguments: list[str]) -> bytes:
    lines: list[str] = []
    for name in _operands(arguments) or [context.cwd]:
        path = context.path(name)
        if path.is_dir():
            lines += sorted(child.name for child in path.iterdir())
        elif path.exists():
            lines.append(name)
        else:
            raise CommandFailed(f"{name}: No such file or directory")
    return "".join(f"{line}\n" for line in lines).encode()


def _mkdir(context: Context, arguments: list[str]) -> bytes:
    parents = "-p" in arguments
    for name in _operands(arguments):
        context.path(name).mkdir(parents=parents, exist_ok=parents)
    return b""


def _rm(context: Context, arguments: list[str]) -> bytes:
    flags = "".join(a for a in arguments if a.startswith("-"))
    for name in _operands(arguments):
        path = context.path(name, follow=False)
        if path == context.root.resolve():
            raise CommandFailed("refusing to remove the root")
        if path.is_dir() and not path.is_symlink():
            if "r" not in flags:
                raise CommandFailed(f"{name}: Is a directory")
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok="f" in flags)
    return b""


def _ln(context: Context, arguments: list[str]) -> bytes:
    """`ln -s TEXT LINK`."""
    if len(arguments) != 3 or arguments[0] != "-s":
        raise CommandFailed("only ln -s TARGET LINK is offered")
    context.path(arguments[2], follow=False).symlink_to(arguments[1])
    return b""


def _readlink(context: Context, arguments: list[str]) -> bytes:
    return f"{context.path(arguments[0], follow=False).readlink()}\n".encode()


def _mv(context: Context, arguments: list[str]) -> bytes:
    source, target = (context.path(name, follow=False) for name in _operands(arguments))
    (target / source.name if target.is_dir() else target).parent.mkdir(exist_ok=True)
    source.replace(target / source.name if target.is_dir() else target)
    return b""


def _sha256sum(context: Context, arguments: list[str]) -> bytes:
    lines = []
    for name in _operands(arguments):
        with context.path(name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines).encode()


def _tar(context: Context, arguments: list[str]) -> bytes:
    """`tar -xzf FILE -C DIR`."""
    if len(arguments) != 4 or arguments[0] not in ("-xzf", "-xf") or arguments[2] != "-C":
        raise CommandFailed("only tar -xzf FILE -C DIR is offered")
    with tarfile.open(context.path(arguments[1])) as archive:
        archive.extractall(context.path(arguments[3]), filter="data")
    return b""


def _df(context: Context, arguments: list[str]) -> bytes:
    lines = ["Filesystem 1K-blocks Used Available Use% Mounted on"]
    for name in _operands(arguments):
        room = os.statvfs(context.path(name))
        total, free = (n * room.f_frsize // 1024 for n in (room.f_blocks, room.f_bavail))
        used = 100 * (total - free) // max(1, total)
        lines.append(f"emulated {total} {total - free} {free} {used}% {name}")
    return "".join(f"{line}\n" for line in lines).encode()


def _test(context: Context, arguments: list[str]) -> bytes:
    checks = {"-e": Path.exists, "-f": Path.is_file, "-d": Path.is_dir}
    arguments = [a for a in arguments if a != "]"]
    if len(arguments) != 2 or arguments[0] not in checks:
        raise CommandFailed("only test -e|-f|-d FILE is offered", 2)
    if not checks[arguments[0]](context.path(arguments[1])):
        raise CommandFailed("")
    return b""


def _kill(context: Context, arguments: list[str]) -> bytes:
    """`kill [-0|-TERM|-KILL] PID`, of processes of this device alone."""
    numbers = {"-0": 0, "-TERM": signal.SIGTERM, "-15": 15, "-KILL": signal.SIGKILL, "-9": 9}
    for name in _operands(arguments):
        process = context.processes.get(int(name)) if name.isdecimal() else None
        if process is None or process.poll() is not None:
            raise CommandFailed(f"{name}: No such process")
        process.send_signal(next((numbers[a] for a in arguments if a in numbers), 15))
    return b""


def _chmod(context: Context, arguments: list[str]) -> bytes:
    for name in arguments[1:]:
        context.path(name).chmod(int(arguments[0], 8) & 0o777)
    return b""


def _tail(context: Context, arguments: list[str]) -> bytes:
    """`tail -n N FILE`."""
    lines = context.path(arguments[-1]).read_bytes().splitlines(keepends=True)
    return b"".join(lines[-int(arguments[1]) :])


TABLE: dict[str, Command] = {
    "[": _test,
    "cat": _cat,
    "cd": _cd,
    "chmod": _chmod,
    "date": lambda *_: f"{time.time():.0f}\n".encode(),  # the only format asked for: +%s
    "df": _df,
    "echo": lambda _, arguments: (" ".join(arguments) + "\n").encode(),
    "id": lambda *_: b"uid=2000(shell) gid=2000(shell)\n",
    "kill": _kill,
    "ln": _ln,
    "ls": _ls,
    "mkdir": _mkdir,
    "mv": _mv,
    "readlink": _readlink,
    "rm": _rm,
    "sha256sum": _sha256sum,
    "tail": _tail,
    "tar": _tar,
    "test": _test,
    "true": lambda *_: b"",
}
