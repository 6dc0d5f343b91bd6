"""Old commands are told their new names."""

from __future__ import annotations

import pytest

from host.cli import VERBS, build_app, main
from host.cli.old_names import OLD_NAMES, new_name


@pytest.mark.parametrize(
    ("words", "now"),
    [
        ("benchmark --model x", "bench"),
        ("cluster --clusters 16", "quantize cluster"),
        ("advanced_quantization hybrid", "quantize hybrid"),
        ("advanced_quantization.py sparse", "quantize sparse"),
        ("comparison_tools visualize", "visualize"),
        ("hardware_optimizations power-optimize", "power-optimize"),
        ("benchmark_db_query --report", "report"),
        ("benchmark_db_query --sql x", "query"),
        ("frobnicate", ""),
        ("", ""),
    ],
)
def test_new_names(words, now):
    assert new_name(words.split()) == now


def test_the_command_line_answers_with_the_right_command(capsys):
    assert main(["benchmark", "--model", "bert-base-uncased"]) == 2
    assert "It is now: qhost bench." in capsys.readouterr().err


def verbs_of(app) -> set[str]:
    return {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}


def test_every_new_name_exists():
    assert {now.split()[0] for now in OLD_NAMES.values()} <= verbs_of(build_app())


@pytest.mark.parametrize("module", VERBS)
def test_a_module_has_the_verbs_that_the_table_says(module):
    for verb in VERBS[module]:
        assert verbs_of(build_app(verb)) == set(VERBS[module])
