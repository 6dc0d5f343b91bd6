"""The picture of a hybrid variant's search."""

import pytest

from host.cli import main
from host.report.fronts import draw, fronts

DOCUMENT = {
    "activation_front": [
        {"share_above_8_bits": 0.9, "predicted_error": 1e-4},
        {"share_above_8_bits": 0.5, "predicted_error": 3e-4},
        {"share_above_8_bits": 0.0, "predicted_error": 2e-2},
    ],
    "weight_front": [
        {"stored_bytes": 4_000_000, "predicted_error": 1e-3},
        {"stored_bytes": 2_500_000, "predicted_error": 5e-2},
    ],
    "chosen": {
        "share_above_8_bits": 0.5,
        "predicted_activation_error": 3e-4,
        "stored_bytes": 2_500_000,
        "predicted_weight_error": 5e-2,
    },
}


def test_both_fronts_are_drawn_with_the_chosen_point():
    figure = draw("net", fronts(DOCUMENT))
    activations, weights = figure.axes
    line, star = activations.get_lines()
    assert line.get_xydata().tolist() == [[90.0, 1e-4], [50.0, 3e-4], [0.0, 2e-2]]
    assert star.get_xydata().tolist() == [[50.0, 3e-4]]
    line, star = weights.get_lines()
    assert line.get_xydata().tolist() == [[4.0, 1e-3], [2.5, 5e-2]]
    assert star.get_xydata().tolist() == [[2.5, 5e-2]]
    assert activations.get_yscale() == "log"


def test_a_front_that_was_not_searched_is_left_out():
    searched = {
        **DOCUMENT,
        "weight_front": [],
        "chosen": {**DOCUMENT["chosen"], "stored_bytes": None},
    }
    (only,) = fronts(searched)
    assert only.title == "Activations above 8 bits"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--output-path", "x.png"], "--results-path X.qnn"),
        (["--output-path", "x.html", "--results-path", "a.qnn"], ".png, .svg"),
    ],
)
def test_it_needs_an_artifact_and_a_picture(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["visualize", "--plot-type", "sensitivity", *args]) == 1
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
