"""What a hybrid variant traded: the two fronts of its sensitivity analysis, as a picture.

Data: report/sensitivity.json of an artifact (quant.search.report). The errors are predicted from
one tensor quantized at a time in onnxruntime; nothing here was run on a device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from host.errors import UserError
from host.report.files import write_whole
from host.report.static_frame import COLOURS, MUTED, STYLE
from quant.artifact import open_artifact

_DPI = 144
SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class Front:
    """cost falls from the first point to the last, while the error rises; chosen: one point."""

    title: str
    cost_name: str
    cost: tuple[float, ...]
    error: tuple[float, ...]
    chosen: tuple[float, float] | None


def fronts(document: Mapping[str, Any]) -> list[Front]:
    """Those of the two fronts that the analysis searched."""
    chosen = document["chosen"]
    rows = [
        (
            "Activations above 8 bits",
            "share of the activations (%)",
            [(100 * p["share_above_8_bits"], p["predicted_error"])
             for p in document["activation_front"]],
            (100 * chosen["share_above_8_bits"], chosen["predicted_activation_error"]),
        ),
        (
            "Weights at 8 and 4 bits",
            "stored weights (MB)",
            [(p["stored_bytes"] / 1e6, p["predicted_error"]) for p in document["weight_front"]],
            None
            if chosen.get("stored_bytes") is None
            else (chosen["stored_bytes"] / 1e6, chosen["predicted_weight_error"]),
        ),
    ]  # fmt: skip
    return [
        Front(title, name, tuple(x for x, _ in points), tuple(y for _, y in points), mark)
        for title, name, points, mark in rows
        if len(points) > 1
    ]


def draw(name: str, found: list[Front]) -> Figure:
    figure = Figure(figsize=(5.4 * len(found) + 0.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{name}: accuracy given up for size and narrow activations", x=0.01, ha="left", size=13
    )
    for front, axes in zip(found, figure.subplots(1, len(found), squeeze=False)[0], strict=True):
        axes.plot(front.cost, front.error, color=COLOURS["front"], marker=".", label="Pareto front")
        if front.chosen is not None:
            axes.plot(*front.chosen, "*", color=COLOURS["best"], markersize=15, label="chosen")
        if min(front.error) > 0:
            axes.set_yscale("log")
        axes.set_title(front.title, loc="left", size=10.5)
        axes.set_xlabel(front.cost_name)
        axes.set_ylabel("predicted squared error\nof the outputs over their power")
        axes.legend(frameon=False)
    figure.text(
        0.01, 0.0, "Predicted, from one tensor quantized at a time.", size=8, color=MUTED, va="top"
    )
    return figure


def save_fronts(artifact: Path, path: Path) -> None:
    """Draw the fronts of an artifact into a .png or .svg.

    Raises UserError where the artifact holds no analysis, or for another kind of file.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"Cannot draw the fronts into {path.name!r}.", f"End the name in {', '.join(SUFFIXES)}."
        )
    opened = open_artifact(artifact)
    member = "report/sensitivity.json"
    found = fronts(json.loads(opened.read(member))) if member in opened.members else []
    if not found:
        raise UserError(
            f"{artifact.name} holds no search of precisions.",
            "Quantize with hybrid and a budget or --sensitivity-analysis.",
        )
    with mpl.rc_context(STYLE):
        figure = draw(str(opened.manifest["model"]["name"]), found)
        kind = path.suffix.lstrip(".").lower()
        metadata = {"Date": None} if kind == "svg" else None
        write_whole(
            path,
            lambda part: figure.savefig(
                part, format=kind, dpi=_DPI, facecolor="white", metadata=metadata,
                bbox_inches="tight",
            ),
        )  # fmt: skip
