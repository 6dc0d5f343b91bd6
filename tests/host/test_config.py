"""Settings: which source wins, and what a bad one says."""

from __future__ import annotations

import pytest

from host.config import SETTINGS, cache_dir, resolve
from host.errors import UserError


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    (tmp_path / "qhost.toml").write_text('seed = 3\nmethods = "int8"\nprofile = "quick"\n')
    env = {"QHOST_SEED": "5", "QHOST_METHODS": "int4"}
    out = resolve({"seed": 7}, environ=env, cwd=tmp_path)
    assert (out["seed"].value, out["seed"].source) == (7, "flag")
    assert (out["methods"].value, out["methods"].source) == ("int4", "environment QHOST_METHODS")
    assert (out["profile"].value, out["profile"].source) == (
        "quick",
        str(tmp_path / "qhost.toml"),
    )
    assert (out["perf_profile"].value, out["perf_profile"].source) == (None, "default")


def test_the_file_is_found_in_a_parent_folder(tmp_path):
    (tmp_path / "qhost.toml").write_text("seed = 9\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert resolve({}, environ={}, cwd=below)["seed"].value == 9


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seeds = 1\n", "Did you mean seed"),
        ("seed = 'x'\n", "is not a whole number"),
        ("mock = 3\n", "is not true or false"),
        ("seed = = 1\n", "cannot be read as TOML"),
        ("emulator_samples = 2.5\n", "is not a whole number"),
        ("emulator_samples = 0\n", "is below 1"),
        ("time_factor = 0\n", "is not above 0"),
        ("time_factor = nan\n", "is not a finite number"),
        ("sample_rate_hz = 1001\n", "is above 1000"),
        ("sample_rate_hz = 0.0\n", "is not above 0"),
        ("cooldown_timeout = -1\n", "is below 0"),
        ("methods = ['int8']\n", "is not a text"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, text, says):
    (tmp_path / "qhost.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        resolve({}, environ={}, cwd=tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["flag", "environment"])
def test_a_range_holds_wherever_the_value_comes_from(tmp_path, source):
    flags = {"time_factor": -1.0} if source == "flag" else {}
    env = {} if flags else {"QHOST_TIME_FACTOR": "-1"}
    with pytest.raises(UserError, match=r"time_factor = .* is not above 0"):
        resolve(flags, environ=env, cwd=tmp_path)


def test_a_bad_environment_variable_is_named(tmp_path):
    with pytest.raises(UserError, match="environment QHOST_MOCK"):
        resolve({}, environ={"QHOST_MOCK": "perhaps"}, cwd=tmp_path)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("off", False), ("Yes", True)])
def test_booleans_from_the_environment(tmp_path, text, value):
    assert resolve({}, environ={"QHOST_MOCK": text}, cwd=tmp_path)["mock"].value is value


def test_cache_dir_follows_xdg(tmp_path):
    assert cache_dir(None, {"XDG_CACHE_HOME": "/x"}).as_posix() == "/x/qhost"
    assert cache_dir(tmp_path, {"XDG_CACHE_HOME": "/x"}) == tmp_path


def test_every_setting_has_a_help_text():
    assert all(s.help for s in SETTINGS.values())
