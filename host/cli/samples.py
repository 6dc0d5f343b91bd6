"""`qhost samples`: list the sample models, build one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from host import config, samples


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Sample models with labelled data: list them, build one.", no_args_is_help=True
    )
    group.command("list")(list_samples)
    group.command("build")(build_sample)
    app.add_typer(group, name="samples")


def list_samples() -> None:
    """Every sample, whether it is there, and where."""
    cache = config.cache_dir(config.resolve()["cache_dir"].value)
    rows = [("NAME", "TYPE", "METRIC", "STATE", "DESCRIPTION")]
    for name, recipe in samples.RECIPES.items():
        if recipe.module is None:
            state = "shipped"
        elif samples.is_built(samples.sample_path(name, cache)):
            state = "built"
        else:
            state = "not built"
        rows.append((name, recipe.model_type, recipe.metric, state, recipe.description))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print("\nSources and licences:")
    for name, recipe in samples.RECIPES.items():
        print(f"  {name.ljust(widths[0])}  {recipe.sources}")
    print(f"\nBuilt samples live in {cache / 'samples'}.")


def build_sample(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A sample of `qhost samples list`.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the files go (default: the cache folder).")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Downloads and built samples (default: ~/.cache/qhost).")
    ] = None,
) -> None:
    """Fetch, convert and check one sample; takes seconds to minutes."""
    folder = config.cache_dir(config.resolve({"cache_dir": cache_dir})["cache_dir"].value)
    output = output_dir or samples.sample_path(name, folder)
    minutes = samples.recipe(name).minutes
    print(f"Building {name}, about {minutes} min on one core ...", file=sys.stderr)
    figure = samples.build(name, output, folder / "downloads")
    print(f"{name}: {figure}\n{output}")
