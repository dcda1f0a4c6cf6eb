"""Masks and attention of a bound pattern, dense and in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.reference.evaluate import evaluate
from spdsl.reference.points import Points, points
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import BoundPattern, Const, Coord, Expr, Extent, Grid, Index
from spdsl.semantics.rewrite import substitute, walk


def mask(
    pattern: BoundPattern,
    nq: int,
    n: int,
    *,
    tables: Mapping[str, Tensor] | None = None,
    q_start: int | Tensor | None = None,
    k_start: int | Tensor | None = None,
    k_len: int | Tensor | None = None,
    batch: int | None = None,
) -> Tensor:
    """The pairs that ``pattern`` keeps among ``nq`` queries and ``n`` rows of keys.

    Args:
        pattern: what is kept.
        nq: the number of queries.
        n: the number of rows of keys.
        tables: the inputs by name, each with a leading batch axis of size 1 or batch if it likes.  They are read at
            positions, which count from ``k_start``; an axis ``q`` has a row for each query.
        q_start: position of the first query, int or ``[batch]``; by default the queries are the last positions.
        k_start: the row of keys that is position 0.
        k_len: how many keys exist from there on.
        batch: how many sequences; by default what the tables and positions say.

    Returns:
        bool ``[heads, nq, n]``, or ``[batch, heads, nq, n]`` if ``batch`` is given or a table or position has a batch
        axis.

    Raises:
        SpatError: more queries than keys without ``q_start`` (SP323), a grid that does not cover the keys (SP324), a
            table read outside its extents (SP320), a division by zero (SP321).
    """
    given = dict(tables or {})
    found = _batch(pattern, given, (q_start, k_start, k_len)) if batch is None else batch
    device = next((table.device for table in given.values()), torch.device("cpu"))
    where = _points(pattern, given, found or 1, nq, n, (q_start, k_start, k_len), device)
    kept = _kept(pattern, where).broadcast_to(found or 1, pattern.heads, nq, n)
    return kept.clone() if found is not None else kept[0].clone()


def attend(
    pattern: BoundPattern,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tables: Mapping[str, Tensor] | None = None,
    q_start: int | Tensor | None = None,
    k_start: int | Tensor | None = None,
    k_len: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of ``q`` over the pairs that ``pattern`` keeps, differentiable in q, k, v and the tables.

    logit = softcap * tanh(scale * q.k / softcap) + bias; the sink's logit enters the denominator only.

    Args:
        pattern: what is kept, and how logits are made.
        q: ``[batch, heads, nq, d]``, any float type.
        k: ``[batch, groups, n, d]``.
        v: ``[batch, groups, n, dv]``.
        tables: see `mask`.
        q_start: see `mask`.
        k_start: see `mask`.
        k_len: see `mask`.

    Returns:
        Output ``[batch, heads, nq, dv]`` and LSE ``[batch, heads, nq]`` (natural log), both float64.  A query that
        keeps nothing gives zeros, −inf (or the sink's logit) and zero gradients.

    Raises:
        SpatError: as in `mask`.
    """
    batch, heads, nq, d = q.shape
    groups, n = k.shape[1], k.shape[2]
    given = dict(tables or {})
    where = _points(pattern, given, batch, nq, n, (q_start, k_start, k_len), q.device)
    kept = _kept(pattern, where).broadcast_to(batch, heads, nq, n)
    q, k, v = _existing(q, k, v, where)
    k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))
    logits = _logits(pattern, q @ k.transpose(-1, -2), d, where, kept)
    sink = _clause(pattern.attend.sink_logit, where, where.indices["q"] >= 0)
    if sink is not None and sink.shape[3] > 1:
        # A reduction over keys has been written to every key; it does not vary along them.
        sink = sink[..., :1]
    return _softmax(logits.masked_fill(~kept, -math.inf), v, sink)


def _existing(q: Tensor, k: Tensor, v: Tensor, where: Points) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, with zeros for rows that do not exist, so that what they hold takes no part in any product."""
    position = where.indices["k"]
    keys = ((position >= 0) & (position < where.extents["n"])).transpose(2, 3)
    queries = where.indices["q"] >= 0
    return tuple(torch.where(there, x.double(), 0.0) for there, x in ((queries, q), (keys, k), (keys, v)))  # type: ignore[return-value]


def _logits(pattern: BoundPattern, products: Tensor, d: int, where: Points, kept: Tensor) -> Tensor:
    attend = pattern.attend
    scale, cap = (_clause(expr, where, kept) for expr in (attend.scale, attend.softcap))
    logits = products * (1 / math.sqrt(d) if scale is None else scale)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    bias = _clause(attend.bias, where, kept)
    if bias is not None:
        # Where nothing is kept a bias may be anything, NaN too; its gradient there must be zero.
        logits = logits + torch.where(kept, bias, 0.0)
    return logits


def _softmax(logits: Tensor, v: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis times ``v``, and its LSE; masked logits are −inf."""
    largest = logits.amax(-1, keepdim=True) if logits.shape[-1] else logits.new_full((*logits.shape[:-1], 1), -math.inf)
    if sink is not None:
        largest = torch.maximum(largest, sink.expand_as(largest))
    # Subtracted for the range of floats alone, so without a gradient.
    largest = torch.where(torch.isfinite(largest), largest, 0.0).detach()
    weights = torch.exp(logits - largest)
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - largest)
    empty = total == 0
    divisor = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -math.inf, largest + torch.log(divisor))
    return (weights / divisor) @ v, lse.squeeze(-1)


def _kept(pattern: BoundPattern, where: Points) -> Tensor:
    return evaluate(pattern.attend.keep, where) & where.exist


def _clause(expr: Expr | None, where: Points, kept: Tensor) -> Tensor | None:
    return None if expr is None else evaluate(expr, where, kept).double()


# ---------------------------------------------------------------- positions


def _points(
    pattern: BoundPattern,
    tables: dict[str, Tensor],
    batch: int,
    nq: int,
    rows: int,
    places: tuple[int | Tensor | None, int | Tensor | None, int | Tensor | None],
    device: torch.device,
) -> Points:
    first, start, length = places

    def numbers(value: int | Tensor) -> Tensor:
        return torch.as_tensor(value, device=device).to(torch.int64).reshape(-1)

    k_start = numbers(0 if start is None else start)
    n = rows - k_start if length is None else numbers(length)
    if first is None:
        q_start = _default_start(pattern, nq, n, ragged=isinstance(start, Tensor) or isinstance(length, Tensor))
    else:
        q_start = numbers(first)
    refuse_uncovered(pattern, n)
    return points(pattern, tables, batch=batch, nq=nq, rows=rows, q_start=q_start, k_start=k_start, n=n)


def _default_start(pattern: BoundPattern, nq: int, n: Tensor, *, ragged: bool) -> Tensor:
    """The queries are the last positions; in a ragged batch the first rows may be padding before position 0."""
    start = n - nq
    if ragged or int(start.min()) >= 0:
        return start
    if not _mentions_query(pattern):
        return torch.zeros_like(start)
    raise error(
        "SP323",
        f"there are {nq} queries but only {int(n.min())} keys, so the queries cannot be the last positions",
        help="say where the first query stands: `q_start=0`",
    )


def _mentions_query(pattern: BoundPattern) -> bool:
    clauses = (pattern.attend.keep, pattern.attend.bias, pattern.attend.sink_logit)
    return any(
        isinstance(node, (Index, Coord)) and (node.name if isinstance(node, Index) else node.side) == "q"
        for clause in clauses
        if clause is not None
        for node in walk(clause)
    )


def refuse_uncovered(pattern: BoundPattern, n: Tensor) -> None:
    """An unnamed grid of positions covers the keys exactly.  Raises `SpatError` (SP324)."""
    for grid in pattern.grids:
        if grid.name is None and grid.of == Index(name="k"):
            for keys in n.unique().tolist():
                _refuse_other_length(pattern.name, grid, keys)


def _refuse_other_length(pattern: str, grid: Grid, keys: int) -> None:
    given: dict[Expr, Expr] = {Extent(name="n"): Const(value=keys)}
    extents = [fold(substitute(extent, given)) for _, extent in grid.coordinates]
    sizes = [int(extent.value) for extent in extents if isinstance(extent, Const)]
    cells = math.prod(sizes)
    if len(sizes) == len(extents) and cells != keys:
        raise error(
            "SP324",
            f"the grid of `{pattern}` has {' × '.join(map(str, sizes))} = {cells} places, but there are {keys} keys",
            grid.span,
            help="give a sequence of that length, or name the grid: tokens outside a named grid are not in it",
        )


def _batch(pattern: BoundPattern, tables: dict[str, Tensor], places: tuple[int | Tensor | None, ...]) -> int | None:
    """How many sequences the tables and positions are for; None if they do not say."""
    sizes = [each.numel() for each in places if isinstance(each, Tensor) and each.dim() == 1]
    for table in pattern.tables:
        value = tables[table.name]
        if value.dim() == len(table.axes) + 1:
            sizes.append(value.shape[0])
        else:
            sizes += [value.shape[place] for place, axis in enumerate(table.axes) if axis.kind == "b"]
    return max(sizes) if sizes else None
