"""What a pattern exports, as tensors or as lists."""

from __future__ import annotations

import torch
from torch import Tensor

from spdsl.runtime.arrays import Arrays
from spdsl.runtime.inputs import Inputs, arrays_of, graph_of
from spdsl.runtime.memo import Memo
from spdsl.runtime.ranking import as_lists, joined
from spdsl.runtime.repeated import repeated
from spdsl.runtime.sets import lists
from spdsl.semantics.features import refuse_other_features
from spdsl.semantics.graph import Export, loads, on_side, side_of
from spdsl.semantics.nodes import BoundPattern, Const, Expr, Load


def exports(pattern: BoundPattern, call: Inputs, *, compact: bool = False) -> dict[str, Tensor]:
    """The exports by name, ``[batch, *axes]`` with floats in fp32; differentiable, and 0 where a value is absent.

    With ``compact`` sets of pairs are lists of keys.
    """
    refuse_other_features(pattern, call.q.shape[3], call.v.shape[3])
    chosen = arrays_of(pattern, call, grad=False)
    tensors = (call.q, call.k, call.v, *call.tables.values())
    trained = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
    values = arrays_of(pattern, call, grad=True) if trained else chosen

    def exported(each: Export) -> Tensor:
        if compact and _is_of_pairs(each):
            return _listed(chosen, each)
        # Sets and whole numbers are constants for the gradient.
        return _exported(values if each.value.dtype == "float" else chosen, each)

    every = graph_of(pattern).exports

    def make() -> tuple[Tensor, ...]:
        return tuple(map(exported, every))

    constant = chosen.kernels and values is chosen
    found = repeated(chosen, "exports as lists" if compact else "exports", make) if constant else make()
    return {each.name: made for each, made in zip(every, found, strict=True)}


def _is_of_pairs(exported: Export) -> bool:
    axes = exported.axes
    return exported.value.dtype == "bool" and on_side(axes, "q") is not None and side_of(axes[-1]) == "k"


def _listed(chosen: Arrays, exported: Export) -> Tensor:
    """A set of pairs as lists of keys, int32 ``[batch, …, rows, most]``."""
    match exported.value:
        case Load(table=name) if name in chosen.stages and exported.only == Const(value=True):
            found = lists(chosen, name)
        case _:
            axis = on_side(exported.axes, "q")
            assert axis is not None
            rows = torch.arange(chosen.lines.size(axis), device=chosen.lines.device)
            width = max(
                (chosen.row_width(chosen.stages[each]) for each in _stages_of(chosen, exported.value)), default=1
            )
            parts = []
            for some in rows.split(max(1, chosen.budget // max(1, width))):
                part = _export_rows(chosen, exported, some)
                parts.append(as_lists(part, max(1, int(part.sum(-1).max()) if part.numel() else 0)))
            found = joined(parts, 1 + exported.axes.index(axis))
    return found.expand(chosen.lines.batch, *found.shape[1:])


def _exported(values: Arrays, exported: Export) -> Tensor:
    axis = on_side(exported.axes, "q")
    if axis is None:
        return _export_rows(values, exported, None)
    rows = torch.arange(values.lines.size(axis), device=values.lines.device)
    width = max(
        (values.row_width(values.stages[name]) for name in _stages_of(values, exported.value)), default=values.lines.n
    )
    parts = [_export_rows(values, exported, some) for some in rows.split(max(1, values.budget // max(1, width)))]
    return torch.cat(parts, dim=1 + exported.axes.index(axis))


def _export_rows(values: Arrays, exported: Export, rows: Tensor | None) -> Tensor:
    memo = Memo()
    value = values.full(exported.value, exported.axes, rows, memo)
    only = values.filter(exported.only, exported.axes, rows, memo)
    nothing = torch.zeros((), dtype=value.dtype, device=value.device)
    batch = values.lines.batch
    return torch.where(only, value, nothing).expand(batch, *value.shape[1:])


def _stages_of(values: Arrays, expr: Expr) -> list[str]:
    return [name for name in loads(expr) if name in values.stages and on_side(values.stages[name].axes, "q")]
