"""The pages name what exists: every verb and option, and no command that does not."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

from host.cli import VERBS, build_app
from quant.methods.grammar import parse_methods

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "make_cli_docs.py"))


def test_the_command_reference_is_current():
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == TOOL["reference"](), (
        "run: python tools/make_cli_docs.py"
    )


APP = typer.main.get_command(build_app())
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_verb_and_option_has_a_help_text():
    bare = []
    for name, command in TOOL["commands"](APP):
        bare += [] if command.help else [name]
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            if parameter.name != "help" and not parameter.hidden and len(text) < 3:
                bare.append(f"{name} {parameter.name}")
    assert bare == []


def test_every_verb_is_in_the_user_guide():
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    missing = [v for verbs in VERBS.values() for v in verbs if f"qhost {v}" not in guide]
    assert missing == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == pages


def commands_of(text: str) -> list[str]:
    """Every qhost command of a page: lines of code blocks, and code in running text."""
    text = text.replace("\\\n", " ")
    code = re.findall(r"`(qhost [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    for line in text.splitlines():
        found = re.match(r"^(?:    |\$ )?\s*(qhost [a-z].*)$", line)
        if found and not line.startswith(("- ", "qhost answers", "qhost is", "qhost grew")):
            code.append(found[1])
    return [re.sub(r"\s{2,}#.*$", "", command) for command in code]


def complaint(command: str) -> str:
    """Why the program would not take the command; empty when it would."""
    try:
        words = shlex.split(command)[1:]
    except ValueError:
        return ""  # the quotes close on a later line
    group = APP
    while words and hasattr(group, "commands"):
        word = words.pop(0)
        if not re.fullmatch(r"[a-z][a-z0-9-]+", word):
            return "" if word in {"--help", "--version", "..."} or word.isupper() else f"{word}?"
        if word not in group.commands:
            return f"no verb {word}"
        group = group.commands[word]
    known = {o for p in group.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "--debug"}
    for index, word in enumerate(words):
        if word.startswith("--") and word.split("=")[0] not in known:
            return f"no option {word}"
        if word == "--methods" and index + 1 < len(words) and not words[index + 1].isupper():
            parse_methods(words[index + 1])
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_exist(page):
    found = commands_of(page.read_text(encoding="utf-8"))
    assert {c: why for c in found if (why := complaint(c))} == {}


def test_commands_that_do_not_exist_are_found():
    page = "    qhost bench --sped 3\n`qhost bnech`\n```sh\nqhost db merge a --output b  # c\n```\n"
    assert [complaint(c) for c in commands_of(page)] == [
        "no verb bnech", "no option --sped", "no option --output",
    ]  # fmt: skip


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / "docs" / target).exists(), target
