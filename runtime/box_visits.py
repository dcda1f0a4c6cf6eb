"""Counts of boxes and pairs on a grid, exactly and without walking them: along every axis, multiplied.

From a kernel with a `BoxWalk` and a call.  A product of intervals has as many boxes as its axes have together, for
every head and sequence by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor

from spdsl.analysis.box_tiles import Boxes
from spdsl.analysis.plans import KernelPlan
from spdsl.analysis.tiles import BoxWalk, Interval
from spdsl.runtime.calls import Call
from spdsl.runtime.evaluate import Tables, evaluate, tables_for
from spdsl.runtime.pairs import Pairs, pairs_of
from spdsl.runtime.visits import Visits
from spdsl.semantics.nodes import Const

_CHUNK = 1 << 22
"""Pairs of places of an axis, times heads and batches, that are looked at together."""


def box_visits(call: Call, walk: BoxWalk, kernel: KernelPlan) -> Visits:
    """What a kernel visits that walks boxes."""
    assert kernel.boxes is not None
    tables, pairs = tables_for(call.plan.tables, call.tables), pairs_of(call)
    own = "j" if kernel.by == "key" else "i"
    touched, full = [], []
    for axis, count in enumerate(kernel.boxes.counts("k" if own == "j" else "q")):
        turn, step = torch.arange(count, device=pairs.device), kernel.boxes.axes[axis].step
        numbers = {f"{own}{axis}": turn // step, f"class{axis}": turn % step}
        env = pairs.extents() | pairs.outer(1) | numbers
        lo, hi = _ends(walk.touched[axis], env, tables)
        touched.append((hi - lo).clamp(min=0).expand(*hi.shape[:-1], count).sum(-1))
        if walk.full is not None:
            first, last = _ends(walk.full[axis], env, tables)
            inside = (torch.minimum(last, hi) - torch.maximum(first, lo)).clamp(min=0)
            full.append(inside.expand(*inside.shape[:-1], count).sum(-1))
    visits = _total(call, touched), _total(call, full) if full else 0
    if not kernel.boxes.tail:
        return Visits(touched=visits[0], full=visits[1])
    # Tiles of rows after the grid meet all tiles; where the grid is cut off, its boxes are masked.
    more_q, more_k = _after(kernel, kernel.boxes, pairs)
    boxes_q, boxes_k = prod(kernel.boxes.counts("q")), prod(kernel.boxes.counts("k"))
    outer = call.q.shape[0] * call.q.shape[1]
    more = (boxes_q * more_k + more_q * boxes_k + more_q * more_k) * outer
    return Visits(touched=visits[0] + more, full=visits[1] if pairs.keys >= kernel.boxes.places else 0)


def box_states(call: Call, walk: BoxWalk, kernel: KernelPlan, *, head: int, batch: int) -> tuple[Tensor, Tensor]:
    """Which boxes are touched and which full, bool ``[own boxes, walked boxes]``, for one head and sequence.

    Boxes of all classes are counted row by row; tiles of rows after the grid come last.
    """
    boxes, pairs = kernel.boxes, pairs_of(call)
    assert boxes is not None
    own, sides = ("j", ("k", "q")) if kernel.by == "key" else ("i", ("q", "k"))
    place: dict[str, Tensor | int] = {"b": batch, "h": head, "g": head // (pairs.heads // pairs.groups)}
    tables = tables_for(call.plan.tables, call.tables)
    touched = full = torch.ones(1, 1, dtype=torch.bool, device=pairs.device)
    for axis, part in enumerate(boxes.axes):
        turn, other = (torch.arange(part.count(side), device=pairs.device) for side in sides)  # type: ignore[arg-type]
        turn, same = turn[:, None], turn[:, None] % part.step == other % part.step
        env = pairs.extents() | place | {f"{own}{axis}": turn // part.step, f"class{axis}": turn % part.step}
        inside = same & _holds(walk.touched[axis], other // part.step, env, tables)
        touched = _product(touched, inside)
        whole = (
            torch.zeros_like(inside) if walk.full is None else _holds(walk.full[axis], other // part.step, env, tables)
        )
        full = _product(full, inside & whole)
    full = full & (pairs.keys >= boxes.places) if walk.full is not None else torch.zeros_like(touched)
    more_q, more_k = _after(kernel, boxes, pairs)
    columns, rows = (more_q, more_k) if own == "j" else (more_k, more_q)
    more = (0, columns, 0, rows)
    return torch.nn.functional.pad(touched, more, value=True), torch.nn.functional.pad(full, more, value=False)


def _holds(interval: Interval, box: Tensor, env: dict[str, Tensor | int], tables: Tables) -> Tensor:
    lo, hi = _ends(interval, env, tables)
    return (lo <= box) & (box < hi)


def _product(outer: Tensor, inner: Tensor) -> Tensor:
    """Pairs of boxes of two axes, the second counted faster."""
    product = outer[:, None, :, None] & inner[None, :, None, :]
    return product.flatten(2, 3).flatten(0, 1)


def _after(kernel: KernelPlan, boxes: Boxes, pairs: Pairs) -> tuple[int, int]:
    """How many tiles of queries and of keys come after the grid."""
    if not boxes.tail:
        return 0, 0
    rows_q, rows_k = (max(0, rows - boxes.places) for rows in (pairs.queries, pairs.keys))
    return -(-rows_q // kernel.block_q), -(-rows_k // kernel.block_k)


def pairs_on_grid(call: Call, boxes: Boxes) -> int | None:
    """How many pairs a predicate keeps over batch and heads, None where it is not one for each axis."""
    n = call.keys
    if boxes.rest != Const(value=True) or n < boxes.places:
        return None
    tables, pairs = tables_for(call.plan.tables, call.tables), pairs_of(call)
    counts = []
    for axis, extent in enumerate(boxes.extents):
        clause = boxes.axes[axis].keep
        keys = torch.arange(extent, device=pairs.device).view(1, -1)
        step = max(1, _CHUNK // (extent * pairs.heads * len(pairs.batches)))
        count = torch.zeros((), dtype=torch.int64, device=pairs.device)
        for start in range(0, extent, step):
            queries = torch.arange(start, min(start + step, extent), device=pairs.device).view(-1, 1)
            env = pairs.extents() | pairs.outer(2) | {f"q{axis}": queries, f"k{axis}": keys}
            kept = torch.as_tensor(evaluate(clause, env, tables), device=pairs.device)
            count = count + kept.expand(*kept.shape[:-2], len(queries), extent).sum((-2, -1))
        counts.append(count)
    after = n * n - boxes.places**2
    return _total(call, counts) + after * call.q.shape[0] * call.q.shape[1]


def _ends(interval: Interval, env: dict[str, Tensor | int], tables: Tables) -> tuple[Tensor, Tensor]:
    lo, hi = (torch.as_tensor(evaluate(end, env, tables)) for end in (interval.lo, interval.hi))
    shape = torch.broadcast_shapes(lo.shape, hi.shape, (1,))
    return lo.expand(shape), hi.expand(shape)


def _total(call: Call, counts: Iterable[Tensor]) -> int:
    """The product over the axes, summed over batch and heads."""
    batch, heads = call.q.shape[:2]
    product = torch.ones((), dtype=torch.int64, device=call.q.device)
    for count in counts:
        product = product * count
    return int(product.expand(batch, heads).sum())
