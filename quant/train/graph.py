"""An ONNX graph as torch functions, its weights by initializer name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from quant.errors import UserError
from quant.graph import array_of, name_of
from quant.model import Model
from quant.train.operators import OPERATORS

Array = np.ndarray[Any, Any]
Tensor = Any
# What stands for an activation behind its quantizer: name and float value in, value out.
Quantizer = Callable[[str, Tensor], Tensor]


class TorchGraph:
    """Runs a model's operators in torch, several samples at once where the graph allows it.

    Raises UserError for an operator that is not in OPERATORS, naming it and its node.
    """

    def __init__(self, model: Model) -> None:
        import torch

        self.model = model
        self.nodes = list(model.ir.graph)
        for node in self.nodes:
            if node.op_type not in OPERATORS or node.domain not in {"", "ai.onnx"}:
                raise UserError(
                    f"Training does not know the operator {node.op_type} (node {node.name!r}).",
                    "Use a method without training, or replace the operator in the model.",
                )
        self.constants = {
            name: torch.from_numpy(np.array(array_of(value)))
            for name, value in model.ir.graph.initializers.items()
        }
        self.inputs = [s.name for s in model.inputs]
        self.outputs = [s.name for s in model.outputs]
        self.batched = True

    def __call__(
        self,
        feeds: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None = None,
        quantizer: Quantizer | None = None,
    ) -> dict[str, Tensor]:
        """Outputs by name for feeds whose leading dimension is samples x one call's.

        weights: initializers replaced. quantizer: applied to every float value once computed.
        """
        import torch

        first = self.model.inputs[0]
        n = int(feeds[first.name].shape[0]) // max(first.shape[0], 1)
        if self.batched or n == 1:
            return self._run(feeds, weights or {}, quantizer)
        rows = {s.name: max(s.shape[0], 1) for s in self.model.inputs}
        parts = [
            self._run(
                {k: v[i * rows[k] : (i + 1) * rows[k]] for k, v in feeds.items()},
                weights or {},
                quantizer,
            )
            for i in range(n)
        ]
        return {k: torch.cat([p[k] for p in parts]) for k in self.outputs}

    def check(self, feeds: Mapping[str, Tensor]) -> None:
        """Find out whether samples may run side by side; `feeds` hold two or more."""
        import torch

        with torch.no_grad():
            self.batched = False
            alone = self(feeds)
            self.batched = True
            try:
                together = self(feeds)
            except (RuntimeError, IndexError):
                self.batched = False
                return
            self.batched = all(
                together[k].shape == alone[k].shape
                and bool(torch.isclose(together[k], alone[k], rtol=1e-3, atol=1e-4).all())
                for k in self.outputs
            )

    def _run(
        self,
        feeds: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        quantizer: Quantizer | None,
    ) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {**self.constants, **weights}
        for name, value in feeds.items():
            values[name] = value if quantizer is None else quantizer(name, value)
        for node in self.nodes:
            operands = [None if v is None else values[name_of(v)] for v in node.inputs]
            try:
                results = OPERATORS[node.op_type](node, operands)
            except (NotImplementedError, KeyError) as error:
                raise UserError(
                    f"Training cannot run {node.op_type} (node {node.name!r}): {error}.",
                    "Use a method without training, or replace the operator in the model.",
                ) from error
            for value, result in zip(
                node.outputs, results if isinstance(results, tuple) else (results,), strict=False
            ):
                name = name_of(value)
                values[name] = result if quantizer is None else quantizer(name, result)
        return {name: values[name] for name in self.outputs}
