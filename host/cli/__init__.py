"""The command line: verbs, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import typer

from host import __version__
from host.cli.help import SECTIONS, Group, Verbs
from host.cli.old_names import new_name
from host.errors import DeviceError, ExitCode, ToolchainError, UserError

VERBS: dict[str, tuple[str, ...]] = {
    module: verbs for modules in SECTIONS.values() for module, verbs in modules.items()
}


# Options that may stand bare or with a value, and what bare means. Typer knows one or the other.
_BARE = {"--dynamic-scaling": "enabled"}


def normalised(args: Sequence[str]) -> list[str]:
    """The command line with a value behind every option of _BARE."""
    out: list[str] = []
    for arg, following in zip(args, (*args, "-")[1:], strict=True):
        out.append(arg)
        if arg in _BARE and following.startswith("-"):
            out.append(_BARE[arg])
    return out


def _version(show: bool) -> None:
    if show:
        print(f"qhost {__version__}")
        raise typer.Exit


def build_app(verb: str | None = None) -> typer.Typer:
    """The application; with the name of a verb, only the part that has it."""
    app = typer.Typer(
        name="qhost",
        cls=Verbs,
        help="Quantize a model every way, run each variant on the Snapdragon HTP, "
        "and say which one to ship.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version.", callback=_version, is_eager=True
        ),
        debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    ) -> None:
        """--debug is read from argv by main: it must work wherever it stands."""

    needed = [module for module, verbs in VERBS.items() if verb in verbs] or list(VERBS)
    for module in needed:
        import_module(f"host.cli.{module}").register(app)
    for group in app.registered_groups:
        group.cls = group.cls if isinstance(group.cls, type) else Group
    return app


def _platform_error() -> str:
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "AMD64"}:
        return (
            f"qhost needs Linux on x86-64 (this is {sys.platform} on {platform.machine()}): "
            "the HTP compiler and emulator exist for nothing else."
        )
    return ""


def fail(message: str, hint: str = "") -> None:
    """One line on stderr."""
    stop = "" if not hint or message.rstrip().endswith((".", "!", "?", ":")) else "."
    line = " ".join(f"{message.rstrip()}{stop} {hint}".split())
    print(f"qhost: error: {line}", file=sys.stderr)


@contextmanager
def _raise_on_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, so that every `finally` ends its children.

    Gives the list of the signals that came: DuckDB turns a KeyboardInterrupt in the middle of a
    query into a RuntimeError of its own.
    """
    came: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run qhost; the exit code of the contract."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args or os.environ.get("QHOST_DEBUG", "") not in {"", "0"}
    args = normalised([a for a in args if a != "--debug"])
    if problem := _platform_error():
        fail(problem)
        return ExitCode.USER_ERROR
    with _raise_on_signals() as interrupted:
        return _run(args, debug, interrupted)


def _interrupted(args: list[str]) -> int:
    more = "; the same with --resume runs what is missing" if args[:1] == ["bench"] else ""
    print(f"qhost: interrupted{more}", file=sys.stderr)
    return ExitCode.INTERRUPTED


def _run(args: list[str], debug: bool, interrupted: list[int]) -> int:
    try:
        result = build_app(args[0] if args else None)(
            args, prog_name="qhost", standalone_mode=False
        )
        if interrupted and result == ExitCode.INTERRUPTED:  # typer caught it, and says nothing
            return _interrupted(args)
        return int(result) if isinstance(result, int) else ExitCode.OK
    except typer.exceptions.TyperException as e:
        if type(e).__name__ == "NoArgsIsHelpError":  # typer has no public name for it
            print(e.format_message(), file=sys.stderr)
            return ExitCode.USAGE
        now = new_name(args) if "No such command" in e.format_message() else ""
        fail(e.format_message(), f"It is now: qhost {now}." if now else "See --help.")
        return ExitCode.USAGE
    except typer.Exit as e:
        return int(e.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted(args)
    except BrokenPipeError:
        # The reader of stdout went away (qhost ... | head). Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except (UserError, DeviceError, ToolchainError) as e:
        if debug:
            traceback.print_exc()
        fail(str(getattr(e, "message", e)), getattr(e, "hint", ""))
        return ExitCode.USER_ERROR if isinstance(e, UserError) else ExitCode.DEVICE_ERROR
    except Exception as e:  # noqa: BLE001 - the last line of defence, exit code 70
        if interrupted:  # a library met our KeyboardInterrupt and made it its own error
            return _interrupted(args)
        if debug:
            traceback.print_exc()
        fail(
            f"internal error: {type(e).__name__}: {e}.",
            "Run again with --debug for the traceback, and please report it.",
        )
        return ExitCode.INTERNAL


if __name__ == "__main__":
    sys.exit(main())
