"""The tensors of a call of a pattern with stages, and the arrays that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from spdsl.diagnostics import error
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.checks import check_inputs
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.lines import Lines
from spdsl.semantics.graph import Attention, StageGraph, loads, parts
from spdsl.semantics.nodes import BoundPattern
from spdsl.semantics.shared_axes import check_shared

_BUDGET = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Numbers that a chunk of rows may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The tensors of a call and the position of the first query.

    ``kernels``: whether selections are made by generated kernels; by default they are on a GPU.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tables: Mapping[str, Tensor]
    q_start: int
    kernels: bool | None = None


def graph_of(pattern: BoundPattern) -> StageGraph:
    """The stages of a pattern that has some."""
    assert pattern.graph is not None
    return pattern.graph


def arrays_of(pattern: BoundPattern, call: Inputs, *, grad: bool) -> Arrays:
    """The arrays of a call; without ``grad`` nothing of them is differentiated."""
    _refuse_lists(pattern)
    tables = {table.name: with_batch(table, call.tables[table.name]) for table in pattern.tables}
    check_inputs(pattern.tables, tables, call.q, call.k, call.v, call.q_start)
    check_shared(pattern, {name: table.shape[0] for name, table in tables.items()})
    tensors = {"Q": call.q, "K": call.k, "V": call.v, **tables}
    if not grad:
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    lines = Lines(
        pattern=pattern,
        tables=tables,
        batch=call.q.shape[0],
        nq=call.q.shape[2],
        n=call.k.shape[2],
        q_start=call.q_start,
        device=call.q.device,
    )
    stages = {stage.name: stage for stage in graph_of(pattern).stages}
    kernels = call.q.device.type == "cuda" if call.kernels is None else call.kernels
    budget = _BUDGET.get(call.q.device.type, 1 << 22)
    return Arrays(lines=lines, stages=stages, tensors=tensors, budget=budget, kernels=kernels)


def _refuse_lists(pattern: BoundPattern) -> None:
    """Refuse inputs that are given as lists where they are more than a part of `keep`."""
    given = {table.name for table in pattern.tables if table.listed}
    for stage in graph_of(pattern).stages if given else ():
        clauses = parts(stage)[3:4] if isinstance(stage, Attention) else ()
        for part in parts(stage):
            if loads(part) & given and part not in clauses:
                name = min(loads(part) & given)
                raise error(
                    "SP347",
                    f"`{name}` is given as lists, but stages compute with it",
                    stage.span,
                    help="pass bools, one for each pair",
                )
