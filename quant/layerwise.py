"""The file of --layer-wise-config: precisions of single layers. Schema in docs/hybrid.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import onnx_ir as ir

from quant.errors import UserError, unknown_name
from quant.graph import initializer_uses, name_of
from quant.mixed import leaders
from quant.parts import computes, is_table_lookup, node_key

_WEIGHTS = {"fp16": 16, "int8": 8, "int4": 4}
_ACTIVATIONS = {"fp16": 0, "int16": 16, "int8": 8}


@dataclass(frozen=True)
class LayerChoice:
    """weights: 4, 8, 16 (float) or None to leave it; activations: 8, 16, 0 (float) or None."""

    weights: int | None = None
    activations: int | None = None


def read_layer_config(path: Path) -> dict[str, LayerChoice]:
    """Choices by name or pattern, in the order of the file.

    Raises UserError for a missing file, invalid JSON, another version, an unknown key or value.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict) or not isinstance(data.get("layers"), dict):
        raise UserError(
            f"{path} has no object 'layers'.",
            'Write {"version": 1, "layers": {"NAME": "int8"}}.',
        )
    if data.get("version", 1) != 1:
        raise UserError(f"{path} has version {data['version']!r}; this qhost reads version 1.")
    for key in data:
        if key not in {"version", "layers"}:
            raise unknown_name(f"key in {path.name}:", str(key), ["version", "layers"])
    return {str(name): _choice(path, str(name), value) for name, value in data["layers"].items()}


def _choice(path: Path, name: str, value: Any) -> LayerChoice:
    if isinstance(value, str):
        if value not in _WEIGHTS:
            raise unknown_name(f"precision of {name!r} in {path.name}:", value, _WEIGHTS)
        return LayerChoice(_WEIGHTS[value], 0 if value == "fp16" else None)
    if not isinstance(value, dict):
        raise UserError(f"{path.name}: {name!r} is neither a precision nor an object.")
    for key in value:
        if key not in {"weights", "activations"}:
            raise unknown_name(
                f"key of {name!r} in {path.name}:", str(key), ["weights", "activations"]
            )
    weights, activations = value.get("weights"), value.get("activations")
    if weights is not None and weights not in _WEIGHTS:
        raise unknown_name(f"weights of {name!r} in {path.name}:", str(weights), _WEIGHTS)
    if activations is not None and activations not in _ACTIVATIONS:
        raise unknown_name(
            f"activations of {name!r} in {path.name}:", str(activations), _ACTIVATIONS
        )
    choice = LayerChoice(
        None if weights is None else _WEIGHTS[weights],
        None if activations is None else _ACTIVATIONS[activations],
    )
    if (choice.weights == 16) != (choice.activations == 0):
        raise UserError(
            f"{path.name}: {name!r} mixes fp16 and integers in one layer.",
            'The HTP computes a layer in one of them: write "fp16", or integers for both.',
        )
    return choice


def resolve(
    graph: ir.Graph, config: Mapping[str, LayerChoice], source: str
) -> tuple[dict[str, int], dict[str, int]]:
    """(width by node_key, bits by weight name) that the file asks for.

    A name is that of a weight, of an operator or of an operator's output; `*` and `?` match many;
    a later line wins. Raises UserError with the nearest names where nothing matches.
    """
    names: dict[str, list[tuple[ir.Node, str | None]]] = {}
    weight_of: dict[int, str] = {}
    nodes = {id(n): n for n in graph if computes(n)}
    for use in initializer_uses(graph):
        if use.role == "weight" or (is_table_lookup(use.node) and use.index == 0):
            weight_of[id(use.node)] = name_of(use.value)
    for key, node in nodes.items():
        weight = weight_of.get(key)
        known = {node_key(node), *([node.name] if node.name else []), *([weight] if weight else [])}
        for name in known:
            names.setdefault(name, []).append((node, weight))
    widths: dict[str, int] = {}
    weights: dict[str, int] = {}
    leader = leaders(graph)
    for pattern, choice in config.items():
        found = names.get(pattern) or [
            pair for name, pairs in names.items() if fnmatchcase(name, pattern) for pair in pairs
        ]
        if not found:
            raise unknown_name(f"layer in {source}:", pattern, sorted(names))
        for node, weight in found:
            if choice.activations is not None:
                widths[leader[node_key(node)]] = choice.activations
            if weight is not None and choice.weights is not None and choice.weights < 16:
                if choice.weights == 4 and is_table_lookup(node):
                    raise UserError(
                        f"{source}: {weight!r} is a look-up table, which the HTP has not in 4 bits."
                    )
                weights[weight] = choice.weights
                if widths.get(node_key(node)) == 0:
                    del widths[node_key(node)]
    return widths, weights


__all__ = ["LayerChoice", "read_layer_config", "resolve"]
