"""What --help lists: the verbs by what they are for, each with its whole first sentence."""

from __future__ import annotations

import re

# Typer ships its own copy of click, and names neither type in its public modules.
from typer._click import Context, HelpFormatter
from typer.core import TyperGroup

# Section of the list -> module of host.cli -> the verbs that its register(app) adds. The verbs
# are named here so that a call imports only the module it needs.
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "The main job": {
        "bench": ("bench",),
        "compare": ("compare-all", "example"),
    },
    "Make and look into artifacts": {
        "recommend": ("recommend",),
        "quantize": ("quantize",),
        "compile": ("compile",),
        "optimize": ("optimize", "memory-optimize", "power-optimize"),
        "inspect": ("inspect",),
        "samples": ("samples",),
    },
    "Results": {
        "report": ("report",),
        "visualize": ("visualize",),
        "query": ("query",),
        "trace": ("trace",),
        "gate": ("gate",),
        "db": ("db",),
    },
    "Devices": {
        "devices": ("devices",),
        "agent": ("agent",),
        "emulate": ("emulate",),
        "collect": ("collect",),
    },
    "This machine": {
        "doctor": ("doctor",),
        "config": ("config",),
    },
}


class Group(TyperGroup):
    """Verbs with the first sentence of their help, wrapped where others cut it."""

    def sections(self) -> dict[str, list[str]]:
        return {"Commands": list(self.commands)}

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        for title, names in self.sections().items():
            rows = [(n, first_sentence(self.commands[n].help or "")) for n in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Verbs(Group):
    """The verbs of qhost, by section."""

    def sections(self) -> dict[str, list[str]]:
        return {
            title: [v for verbs in modules.values() for v in verbs if v in self.commands]
            for title, modules in SECTIONS.items()
        }


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, without it."""
    paragraph = " ".join(text.strip().split("\n\n", 1)[0].split())
    return re.split(r"\.(?:\s|$)", paragraph, maxsplit=1)[0]
