"""Selections by rank among keys at set distances, such as stripes: scored there alone, never at all pairs.

From: a selection of so many keys in their order (``top(n, rank = a)``) by products of vectors, whose candidates are a
set of distances.  To: the key of each place in the order, and its score, which is differentiable
(`spdsl.runtime.picked_scores`).  Time and memory are those of the candidates and of the results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.distances import period_of
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.evaluate import Tables, evaluate
from spdsl.runtime.memo import Memo
from spdsl.runtime.points import TENSOR_AXES
from spdsl.semantics.build import FALSE
from spdsl.semantics.expand import expand
from spdsl.semantics.graph import TENSORS, Score, Select, Stage, index_of
from spdsl.semantics.nodes import BoundPattern, Const, Expr, Extent, Load
from spdsl.semantics.rewrite import free_axes, free_indices, walk

MOST = 64
"""Picks that a program keeps for each query."""

LARGEST = 256
"""Features that a program keeps of each query."""

_ROWS = 64
"""Queries of a program."""

_UNROLL = 4
"""Distances that are under way at one time."""

_WARPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Striped:
    """The score of a selection, and the vectors of queries and of keys; ``only`` at a pair of positions."""

    score: Score
    queries: Expr
    keys: Expr
    only: Expr
    picks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What has been chosen for each place in an order: keys, int32 ``[batch, heads, picks, nq]``, −1 for none.

    ``there``: whether there is one; ``values`` are their scores, fp32, and 0 for none: products times ``scale``.
    """

    places: Tensor
    there: Tensor
    values: Tensor
    scale: float


def striped(pattern: BoundPattern, stages: dict[str, Stage], stage: Stage) -> Striped | None:
    """The candidates of a selection, if they are at set distances; None where it is something else."""
    match stage:
        case Select(rank=str() as rank, by="count", over="k", also=(), least=None, amount=Const(value=int() as picks)):
            pass
        case _:
            return None
    head, *others = stage.axes
    if head not in ("h", "g") or others != [rank, "q", "k"] or stage.forced != FALSE or not 0 < picks <= MOST:
        return None
    only = expand(pattern, stage.only)
    plain = not any(isinstance(node, Load | Extent) for node in walk(only))
    if not plain or not free_indices(only) <= {"q", "k"} or period_of(only) != 1:
        return None
    axes = (head, "q", "k")
    value = stage.value
    score = stages.get(value.table) if isinstance(value, Load) else None
    if not isinstance(score, Score) or score.axes != axes or not isinstance(value, Load):
        return None
    if value.indices[-3:] != tuple(map(index_of, axes)) or not isinstance(score.scale, Const | None):
        return None
    left, right = score.left, score.right
    if "q" in free_axes(right):
        left, right = right, left
    heads = {head} if head == "g" else {"h", "g"}
    for side, expr in (("q", left), ("k", right)):
        if not free_axes(expr) <= {side, score.over, "b", *heads} or side not in free_axes(expr):
            return None
    return Striped(score=score, queries=left, keys=right, only=only, picks=picks)


def placed(arrays: Arrays, name: str) -> Placed | None:
    """What a selection by rank chooses, by a kernel; None where it is left to torch."""
    if name in arrays.placed:
        return arrays.placed[name]
    found = striped(arrays.lines.pattern, dict(arrays.stages), arrays.stages[name]) if arrays.kernels else None
    if found is None:
        return None
    with torch.no_grad():
        made = _placed(arrays, found, arrays.stages[name].axes[0])
    if made is not None:
        arrays.placed[name] = made
    return made


def _placed(arrays: Arrays, found: Striped, head: str) -> Placed | None:
    from spdsl.codegen.binaries import options_of
    from spdsl.runtime.picked_scores import strides_of
    from spdsl.runtime.plain import start_given
    from spdsl.runtime.stage_values import refuse_unequal
    from spdsl.runtime.stripe_kernels import best_at

    lines, over = arrays.lines, found.score.over
    left, right = (_vectors(arrays, expr, over, side) for expr, side in ((found.queries, "q"), (found.keys, "k")))
    size = left.shape[-1]
    refuse_unequal(found.score, size, right.shape[-1])
    if size > LARGEST:
        return None
    scale = size**-0.5 if found.score.scale is None else float(arrays.evaluate(found.score.scale, (), None, Memo()))
    heads, device = lines.size(head), lines.device
    shape = (lines.batch, heads, found.picks, lines.nq)
    places = torch.empty(shape, dtype=torch.int32, device=device)
    values = torch.empty(shape, dtype=torch.float32, device=device)
    distances = torch.tensor(_distances(found.only, lines.n, lines.nq, lines.q_start), dtype=torch.int32, device=device)
    power = 1 << (found.picks - 1).bit_length()
    constants = {"BLOCK": _ROWS, "UNROLL": _UNROLL}
    constants |= {"PICKS": found.picks, "POWER": max(2, power), "D": size, "BLOCK_D": 1 << (size - 1).bit_length()}
    arguments = (left, right, distances, places, values, scale, len(distances), lines.nq, lines.n, lines.q_start, heads)
    strides = (*strides_of(left, heads), *strides_of(right, heads))
    grid = (-(-lines.nq // _ROWS), lines.batch * heads, 1)
    writes = ("places", "values")
    start_given(best_at, grid, (*arguments, *strides), constants, writes, options_of(_WARPS), left.device)
    return Placed(places=places, there=places >= 0, values=values, scale=scale)


def scores(arrays: Arrays, name: str, made: Placed) -> Tensor:
    """The scores of what such a selection has chosen, differentiable where its vectors are."""
    found = striped(arrays.lines.pattern, dict(arrays.stages), arrays.stages[name])
    if found is None or not _differs(arrays):
        return made.values
    from spdsl.runtime.picked_scores import picked_scores

    over = found.score.over
    left, right = (_vectors(arrays, expr, over, side) for expr, side in ((found.queries, "q"), (found.keys, "k")))
    return picked_scores(left, right, made)


def _differs(arrays: Arrays) -> bool:
    """Whether values may be differentiated."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in arrays.tensors.values())


def _distances(only: Expr, n: int, nq: int, q_start: int) -> list[int]:
    """The distances of a set that pairs of a call may have, descending: there are as many as the longest row has."""
    line = torch.arange(q_start - n + 1, q_start + nq)
    kept = torch.as_tensor(evaluate(only, {"q": line, "k": torch.zeros_like(line)}, Tables(values={})))
    found: list[int] = line[kept.expand(line.shape)].flip(0).tolist()
    return found


def _vectors(arrays: Arrays, expr: Expr, over: str, side: str) -> Tensor:
    """Vectors ``[batch or 1, heads, groups or 1, rows, features]`` whose features lie side by side; tensors as they
    are."""
    read = free_axes(expr)
    heads = next((axis for axis in ("h", "g") if axis in read), None)
    axes = (*(() if heads is None else (heads,)), side, over)
    if isinstance(expr, Load) and expr.table not in arrays.stages and arrays.reads_whole(expr):
        found = arrays.tensors[expr.table]
        labels = TENSOR_AXES[expr.table] if expr.table in TENSORS else arrays.lines.labels(expr.table)
        labels = tuple(side if each == "token" else each for each in labels if each != "b")
        found = found.permute(0, *(1 + labels.index(axis) for axis in axes))
    else:
        found = arrays.full(expr, axes, None, Memo())
    found = found if heads is not None else found.unsqueeze(1)
    return found if found.stride(-1) == 1 else found.contiguous()
