"""Gradients of bias tables and sinks on the CPU: sums in a fixed order, in fp64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.plans import TableGradient
from spdsl.runtime.cpu_logits import Logits
from spdsl.runtime.cpu_rows import Chunk, Segment
from spdsl.runtime.evaluate import Tables, element_numbers, evaluate
from spdsl.semantics.nodes import Const


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSums:
    """Sums for the elements of tables, flat and in fp64, by name."""

    gradients: tuple[TableGradient, ...]
    sums: dict[str, Tensor]

    def add(self, logits: Logits, d_logits: Tensor, units: Tensor, chunk: Chunk, segment: Segment) -> None:
        """Add what logits ``[units * rows, block, length]`` give to the tables of the bias."""
        for gradient in self.gradients:
            if gradient.of == "bias":
                env = logits.env(units, chunk, segment.tiles)
                shaped = d_logits.view(len(units), len(chunk.rows), logits.block, -1)
                self._scatter(gradient, shaped, env, logits.tables)

    def add_sink(self, logits: Logits, d_sink: Tensor) -> None:
        """Add what the logits of sinks ``[batch * heads, nq]`` give to the tables of the sink."""
        for gradient in self.gradients:
            if gradient.of == "sink_logit":
                units = torch.arange(d_sink.shape[0])
                env = logits.outer(units, 1) | {"q": torch.arange(d_sink.shape[1]) + logits.pairs.q_start}
                self._scatter(gradient, d_sink, env, logits.tables)

    def of(self, name: str, like: Tensor) -> Tensor:
        """The gradient of a table, in its shape and type."""
        return self.sums[name].view(like.shape).to(like.dtype)

    def _scatter(self, gradient: TableGradient, d_logits: Tensor, env: dict[str, Tensor | int], tables: Tables) -> None:
        given = d_logits
        if gradient.factor != Const(value=1) and gradient.factor != Const(value=1.0):
            factor = evaluate(gradient.factor, env, tables, torch.float32)
            # Where nothing is kept the factor may be anything, even infinite.
            given = torch.where(d_logits == 0, 0.0, d_logits * factor)
        places = element_numbers(gradient.table, gradient.indices, env, tables)
        places = places.view((1,) * (given.dim() - places.dim()) + tuple(places.shape))
        # Axes on which the place does not depend are summed before the slower scatter.
        alike = [axis for axis, size in enumerate(places.shape) if size == 1]
        if alike:
            given = given.sum(alike, keepdim=True, dtype=torch.float64)
        self.sums[gradient.table].index_add_(0, places.expand(given.shape).flatten(), given.double().flatten())


def table_sums(gradients: tuple[TableGradient, ...], wanted: frozenset[str], tables: dict[str, Tensor]) -> TableSums:
    """Sums at zero for the tables that are wanted."""
    names = wanted & tables.keys()
    return TableSums(
        gradients=tuple(gradient for gradient in gradients if gradient.table in names),
        sums={name: torch.zeros(tables[name].numel(), dtype=torch.float64) for name in sorted(names)},
    )
