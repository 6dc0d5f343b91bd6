"""`qhost recommend`: which variants to try first, and why."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path

import typer

from host.cli import terminal


def register(app: typer.Typer) -> None:
    @app.command("recommend")
    def recommend(
        model_type: str = typer.Option(
            ..., "--model-type", help="text, vision, audio, text_generation or multimodal."
        ),
        model_path: Path | None = typer.Option(
            None, "--model-path", help="Choose by this model's size and structure."
        ),
        input_shape: list[str] | None = typer.Option(
            None, "--input-shape", help="Fix a dynamic input: name:1,3,224,224; repeatable."
        ),
        json_output: bool = typer.Option(False, "--json", help="Print JSON on stdout."),
    ) -> None:
        """Say which variants to try first for a kind of model, as text for --methods."""
        from host.bench.prepare import parse_input_shapes
        from quant.model import load
        from quant.recommend import recommend as recommended

        model = None
        if model_path is not None:
            model = load(model_path, input_shapes=parse_input_shapes(input_shape or []))
        rows = recommended(model_type, model)
        if json_output:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
            return
        console = terminal.stdout()
        width = min(console.width, 100)
        for position, row in enumerate(rows):
            if position:
                console.print()
            mark = "for this model: " if row.fits else "" if model is None else "else: "
            console.print(f"{mark}{row.model_type}, {row.title}")
            # One line, however long: it is there to be copied.
            console.print(f"  --methods '{row.methods}'", soft_wrap=True)
            for line in textwrap.wrap(row.reason, width - 2):
                console.print(f"  {line}")
            console.print(
                f"  cluster: {row.clusters}. sparse: {row.sparsity}.",
                soft_wrap=True,
            )
