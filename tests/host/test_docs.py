"""The reference of the command line is what the program says of itself."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "make_cli_docs.py"))


def test_the_command_reference_is_current():
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == TOOL["reference"](), (
        "run: python tools/make_cli_docs.py"
    )


def test_every_option_has_a_help_text():
    rows = [line for line in TOOL["reference"]().splitlines() if line.startswith("| `")]
    assert not [row for row in rows if row.rstrip(" |").endswith("|")]


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / "docs" / target).exists(), target
