"""A whole call: the pattern with or without stages, sequences at the same places or each at its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spdsl.diagnostics import error
from spdsl.reference import attention, graphs, margins
from spdsl.semantics.nodes import BoundPattern, Table

Place = int | Tensor | None


def attend(
    pattern: BoundPattern,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tables: Mapping[str, Tensor] | None = None,
    q_start: Place = None,
    k_start: Place = None,
    k_len: Place = None,
) -> tuple[Tensor, Tensor | None]:
    """Output and LSE as `attention.attend` gives them; no LSE where a pattern computes with its softmaxes."""
    given = tables or {}
    if pattern.graph is None:
        return attention.attend(pattern, q, k, v, tables=given, q_start=q_start, k_start=k_start, k_len=k_len)
    out, lse, _ = _each(pattern, q, k, v, given, (q_start, k_start, k_len))
    return out, lse


def exports(
    pattern: BoundPattern, q: Tensor, k: Tensor, v: Tensor, *, tables: Mapping[str, Tensor], q_start: int
) -> dict[str, Tensor]:
    """The exports of a pattern by name, ``[batch, *axes]``, floats in float64."""
    return {} if pattern.graph is None else _each(pattern, q, k, v, tables, (q_start, None, None))[2]


def doubtful(
    pattern: BoundPattern, q: Tensor, k: Tensor, v: Tensor, *, tables: Mapping[str, Tensor], q_start: int
) -> Tensor:
    """The rows ``[batch, heads, nq]`` with a selection so near a tie that rounding may decide it."""
    if pattern.graph is None:
        return torch.zeros(q.shape[:3], dtype=torch.bool, device=q.device)
    with torch.no_grad():
        world, _ = graphs.carried_out(pattern, q, k, v, tables=tables, q_start=q_start)
        return margins.doubtful(world)


def _each(
    pattern: BoundPattern,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    places: tuple[Place, Place, Place],
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    if not any(isinstance(place, Tensor) for place in places):
        first, start, length = (None if place is None else int(place) for place in places)
        return _one(pattern, q, k, v, tables, first, start or 0, length)
    rows = k.shape[2]
    found = []
    for batch in range(q.shape[0]):
        first, start, length = (_of(place, batch) for place in places)
        start = start or 0
        length = rows - start if length is None else length
        # Queries before position 0 are padding.
        first = length - q.shape[2] if first is None else first
        some = slice(batch, batch + 1)
        given = {table.name: _own(table, tables[table.name], batch) for table in pattern.tables}
        found.append(_one(pattern, q[some], k[some], v[some], given, first, start, length))
    outs, lses, _ = zip(*found, strict=True)
    return torch.cat(outs), None if lses[0] is None else torch.cat(lses), {}


def _of(place: Place, batch: int) -> int | None:
    if isinstance(place, Tensor):
        return int(place.reshape(-1)[batch if place.numel() > 1 else 0])
    return place


def _own(table: Table, given: Tensor, batch: int) -> Tensor:
    """An input as one sequence has it, behind one for the batch where it has that axis or names it."""
    batched = given.dim() > len(table.axes) or (len(table.axes) > 0 and table.axes[0].kind == "b")
    return given[batch : batch + 1] if batched and given.shape[0] > 1 else given


def _one(
    pattern: BoundPattern,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    first: int | None,
    start: int,
    length: int | None,
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    length = k.shape[2] - start if length is None else length
    k, v = k.narrow(2, start, length), v.narrow(2, start, length)
    q_start = length - q.shape[2] if first is None else first
    if first is None and q_start < 0:
        raise error(
            "SP323",
            f"there are {q.shape[2]} queries but only {length} keys, so the queries cannot be the last positions",
            help="say where the first query stands: `q_start=0`",
        )
    attention.refuse_uncovered(pattern, torch.tensor([length]))
    return graphs.attend(pattern, q, k, v, tables=tables, q_start=q_start)
