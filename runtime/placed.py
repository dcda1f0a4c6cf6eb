"""Reductions over what each place in an order has chosen, which is one key at most: a value at that key.

From: a reduction over all keys of which a selection by rank leaves one, for each place in its order.  To: its whole
array, of the size of the selection; None where it is something else.  Differentiable in what the value is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Select, Stage, index_of
from spdsl.semantics.nodes import Expr, Index, Load
from spdsl.semantics.rewrite import conjuncts

if TYPE_CHECKING:
    from spdsl.runtime.arrays import Arrays


def at_places(arrays: Arrays, stage: Stage) -> Tensor | None:
    """The array ``[batch, *axes]`` of a reduction at the keys that a selection by rank has chosen."""
    match stage:
        case Pool(over="k", per=None, windows=None, kind="any" | "max" | "min" | "sum" | "mean"):
            pass
        case _:
            return None
    conditions = conjuncts(stage.only) + (conjuncts(stage.value) if stage.kind == "any" else [])
    chosen = next((each for each in conditions if _ranked(arrays, each) is not None), None)
    if chosen is None:
        return None
    select = _ranked(arrays, chosen)
    assert select is not None
    if select.axes != (*stage.axes, "k"):
        return None
    from spdsl.runtime.narrowed import NotNarrowedError, Points, at_points
    from spdsl.runtime.stripes import placed, scores

    found = placed(arrays, select.name)
    if found is None:
        return None
    implied = {chosen, build.TRUE, *conjuncts(select.only)}
    rest = build.conj(*(each for each in conditions if each not in implied))
    if rest == build.TRUE:
        match stage.value:
            case _ if stage.kind == "any":
                return found.there
            case Index(name="k"):
                return found.places.clamp(min=0).long()
            case _ if stage.value == select.value:
                return scores(arrays, select.name, found)
            case _:
                pass
    keys, there = found.places.transpose(2, 3).long(), found.there.transpose(2, 3)
    rows = arrays.lines.points_of_rows("q")
    at = Points(row="q", rows=rows, key="k", keys=keys.clamp(min=0), head=select.axes[0])
    try:
        if rest != build.TRUE:
            there = there & at_points(arrays, at, rest)
        if stage.kind == "any":
            return there.transpose(2, 3)
        value = at_points(arrays, at, stage.value)
    except NotNarrowedError:
        return None
    nothing = torch.zeros((), dtype=value.dtype, device=value.device)
    return torch.where(there, value, nothing).expand(there.shape).transpose(2, 3)


def _ranked(arrays: Arrays, condition: Expr) -> Select | None:
    """The selection by rank whose set a condition is, read along its own axes."""
    stage = arrays.stages.get(condition.table) if isinstance(condition, Load) else None
    if not isinstance(stage, Select) or stage.rank is None or not isinstance(condition, Load):
        return None
    return stage if condition.indices[-len(stage.axes) :] == tuple(map(index_of, stage.axes)) else None
