"""The --methods grammar: `int8,sparse[sparsity=0.5,pattern=2:4],hybrid+qat`.

Variants are joined by `,`; `+` composes methods in order; options stand in brackets. The canonical
form writes options in field order and leaves out defaults, so that equal variants are equal text.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.errors import UserError, unknown_name
from quant.methods import METHODS
from quant.methods.base import Quantized
from quant.model import Model
from quant.rewrite import insert_qdq
from quant.simplify import simplify
from quant.task import Task

_STEP = re.compile(r"^\s*([A-Za-z0-9_-]+)\s*(?:\[(.*)\])?\s*$", re.DOTALL)
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True)
class Step:
    """One method with its options (an instance of its options dataclass)."""

    method: str
    options: Any

    @property
    def canonical(self) -> str:
        changed = [
            f"{f.name.replace('_', '-')}={_format(getattr(self.options, f.name))}"
            for f in dataclasses.fields(self.options)
            if getattr(self.options, f.name) != _default(f)
        ]
        return f"{self.method}[{','.join(changed)}]" if changed else self.method


@dataclass(frozen=True)
class Variant:
    """Methods applied in order, each to the result of the one before; without any, AS_IS."""

    steps: tuple[Step, ...]

    @property
    def canonical(self) -> str:
        return "+".join(step.canonical for step in self.steps) or "as-is"

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(step.method for step in self.steps) or (self.canonical,)

    @property
    def options_json(self) -> str:
        """All options, defaults included, as one JSON array in step order."""
        rows = [{"method": s.method, "options": dataclasses.asdict(s.options)} for s in self.steps]
        return json.dumps(rows, sort_keys=True, separators=(",", ":"))


# A graph that came quantized is run as it is. Not in the grammar: nobody can ask for it.
AS_IS = Variant(())


def parse_variant(canonical: str) -> Variant:
    """The variant that `canonical` stands for, AS_IS included."""
    if canonical == AS_IS.canonical:
        return AS_IS
    (variant,) = parse_methods(canonical)
    return variant


def parse_methods(text: str) -> tuple[Variant, ...]:
    """Variants named by `text`, in order, without repeats. `all`: every row of METHODS.

    Raises UserError for an unknown method or option (with the nearest names), a value of the wrong
    type, unbalanced brackets, or an empty list.
    """
    variants: dict[str, Variant] = {}
    for part in _split(text, ","):
        if part.strip().lower() == "all":
            found = [Variant((Step(m.name, m.options()),)) for m in METHODS.values()]
        else:
            found = [Variant(tuple(_step(s) for s in _split(part, "+")))]
        for variant in found:
            variants.setdefault(variant.canonical, variant)
    if not variants:
        raise UserError("--methods is empty.", f"Known: all, {', '.join(METHODS)}.")
    return tuple(variants.values())


def make_variant(method: str, **options: Any) -> Variant:
    """A one-step variant from Python values, for example make_variant("int8", activation_bits=16).

    Options that are None keep their default. Raises UserError as parse_methods does.
    """
    row = _row(method)
    given = {k: v for k, v in options.items() if v is not None}
    known = [f.name for f in dataclasses.fields(row.options)]
    for key in given:
        if key not in known:
            raise unknown_name(f"option of {method}:", key, known)
    return Variant((Step(method, row.options(**given)),))


def quantize(model: Model, task: Task, variant: Variant) -> Quantized:
    """Apply the steps; the graph stays float, the plan says how to encode it.

    Steps that change the weights of a planned model come after those that make the plan, each
    group in the order written: a plan made later would round away zeros and codebooks.
    """
    if not variant.steps:
        return Quantized(model)
    state = Quantized(simplify(model))
    original = state.model
    for step in sorted(variant.steps, key=lambda s: bool(_row(s.method).reweights)):
        state = _row(step.method).apply(state, task, step.options)
        state = dataclasses.replace(state, teacher=original)
    return state


def export(state: Quantized) -> Model:
    """The QDQ graph (the float graph for an empty plan)."""
    return insert_qdq(state.model, state.plan)


def _row(method: str) -> Any:
    if method not in METHODS:
        raise unknown_name("method", method, ["all", *METHODS])
    return METHODS[method]


def _split(text: str, separator: str) -> list[str]:
    """Split outside brackets; empty parts are an error."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char == "[") - (char == "]")
        if depth < 0 or depth > 1:
            raise UserError(f"Unbalanced brackets in {text!r}.", "Write NAME[option=value].")
        if char == separator and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    if depth:
        raise UserError(f"Unbalanced brackets in {text!r}.", "Write NAME[option=value].")
    parts.append(current)
    if any(not p.strip() for p in parts):
        raise UserError(
            f"An empty name in --methods {text!r}.", f"Known: all, {', '.join(METHODS)}."
        )
    return parts


def _step(text: str) -> Step:
    match = _STEP.match(text)
    if match is None:
        raise UserError(f"{text.strip()!r} is not NAME or NAME[option=value].")
    row = _row(match.group(1).lower().replace("_", "-"))
    options: dict[str, Any] = {}
    fields = {f.name: f for f in dataclasses.fields(row.options)}
    types_of = typing.get_type_hints(row.options)
    for pair in (p for p in (match.group(2) or "").split(",") if p.strip()):
        key, equals, value = pair.partition("=")
        name = key.strip().replace("-", "_")
        if name not in fields:
            raise unknown_name(
                f"option of {row.name}:", key.strip(), [f.replace("_", "-") for f in fields]
            )
        if not equals:
            raise UserError(f"Option {key.strip()!r} of {row.name} has no value.", "Write =value.")
        if name in options:
            raise UserError(f"Option {key.strip()!r} of {row.name} is given twice.")
        options[name] = _parse(value.strip(), types_of[name], f"{row.name}[{key.strip()}]")
    return Step(row.name, row.options(**options))


def _parse(text: str, kind: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):  # X | None
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if text.lower() in {"none", ""} else _parse(text, inner[0], where)
    try:
        if kind is bool:
            if text.lower() not in _TRUE | _FALSE:
                raise ValueError(text)
            return text.lower() in _TRUE
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
    except ValueError as error:
        raise UserError(f"{where}: {text!r} is not a {kind.__name__}.") from error
    return text


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() else repr(value)
    return str(value)


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default


def variant_from_json(rows: list[Mapping[str, Any]]) -> Variant:
    """The inverse of `options_json` (parsed)."""
    return Variant(
        tuple(Step(r["method"], _row(r["method"]).options(**r["options"])) for r in rows)
    )
