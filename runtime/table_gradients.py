"""From the sums that kernels leave to the gradients of tables, added up in a fixed order.

Kernels give one number for each query row, key, distance or pair of every head; here the elements that these belong to
are computed, and the numbers of every element are added.  Sorting is stable and segments are summed one by one, so the
result is the same in every run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spdsl.analysis.plans import TableGradient
from spdsl.runtime.calls import Call
from spdsl.runtime.evaluate import element_numbers, tables_for

Env = dict[str, "Tensor | int"]


def partial_shape(gradient: TableGradient, call: Call) -> tuple[int, ...]:
    """The shape of the sums for one gradient."""
    batch, heads, nq, _ = call.q.shape
    n = call.keys
    match gradient.by:
        case "none" | "query":
            return batch, heads, nq
        case "key":
            return batch, heads, n
        case "distance":
            return batch, heads, nq + n - 1
        case "pair":
            return batch, heads, nq, n


def table_gradients(call: Call, partials: Mapping[int, Tensor], wanted: frozenset[str]) -> dict[str, Tensor]:
    """The gradient of every wanted table, in its shape and type; ``partials`` by position in the plan's gradients."""
    found: dict[str, Tensor] = {}
    for position, sums in sorted(partials.items()):
        gradient = call.plan.gradients[position]
        if gradient.table in wanted:
            part = _scattered(call, gradient, sums)
            found[gradient.table] = found[gradient.table] + part if gradient.table in found else part
    return {
        name: found[name].view(call.tables[name].shape).to(call.tables[name].dtype)
        if name in found
        else torch.zeros_like(call.tables[name])
        for name in sorted(wanted)
        if name in call.tables
    }


def _scattered(call: Call, gradient: TableGradient, sums: Tensor) -> Tensor:
    tables = tables_for(call.plan.tables, call.tables)
    places = element_numbers(gradient.table, gradient.indices, _env(call, gradient), tables).to(sums.device)
    places = places.view((1,) * (sums.dim() - places.dim()) + tuple(places.shape))
    given = sums.double()
    # Axes on which the element does not depend are summed before the slower sort.
    alike = [axis for axis, size in enumerate(places.shape) if size == 1 and given.shape[axis] != 1]
    if alike:
        given = given.sum(alike, keepdim=True)
    return _segment_sums(places.expand(given.shape).flatten(), given.flatten(), call.tables[gradient.table].numel())


def _segment_sums(places: Tensor, values: Tensor, count: int) -> Tensor:
    """Sums of ``values`` by place, in the order in which they stand."""
    if places.numel() == 0:
        return values.new_zeros(count)
    ordered, order = torch.sort(places, stable=True)
    # Where every segment begins and ends.
    edges = torch.searchsorted(ordered, torch.arange(count + 1, device=places.device))
    return torch.segment_reduce(values[order], "sum", lengths=edges[1:] - edges[:-1], initial=0.0)


def _env(call: Call, gradient: TableGradient) -> Env:
    """Indices that broadcast to the shape of the sums."""
    batch, heads, nq, _ = call.q.shape
    n, device = call.keys, call.q.device
    rank = 4 if gradient.by == "pair" else 3

    def axis(length: int, at: int) -> Tensor:
        return torch.arange(length, device=device).view([-1 if d == at else 1 for d in range(rank)])

    h = axis(heads, 1)
    start: Tensor | int = call.q_start
    if call.places is not None:
        start = call.places[:, 0].long().view(-1, *(1,) * (rank - 1))
    env: Env = {"b": axis(batch, 0), "h": h, "g": h // (heads // call.k.shape[1]), "n": n, "nq": nq, "q_start": start}
    env |= call.parameters
    if call.places is not None:
        env["n"] = call.places[:, 2].long().view(-1, *(1,) * (rank - 1))
    match gradient.by:
        case "none" | "query":
            env |= {"q": start + axis(nq, 2)}
        case "key":
            env |= {"k": axis(n, 2)}
        case "distance":
            # The element depends on q - k alone: any pair at the distance stands for all.
            env |= {
                "q": start + axis(nq + n - 1, 2) - (n - 1),
                "k": torch.zeros((1,) * rank, dtype=torch.int64, device=device),
            }
        case "pair":
            env |= {"q": start + axis(nq, 2), "k": axis(n, 3)}
    return env
