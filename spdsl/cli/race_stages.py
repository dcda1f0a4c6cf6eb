"""What `spdsl bench` does for patterns with stages: how it checks them, and times their selections alone.

Rows of such a pattern cannot be compared a few at a time, since what they keep may depend on all others: the whole call
is compared, with fewer tokens where it would be too large for the dense reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from spdsl.cli.measure import distance, excused
from spdsl.cli.tensors import fixed_length

if TYPE_CHECKING:
    from spdsl.api import Attention
    from spdsl.cli.race import Race
    from spdsl.selecting import GraphReport
    from spdsl.semantics.nodes import BoundPattern

PAIRS_CHECKED = 1 << 24
"""Pairs of queries and keys that the dense reference holds in float64, a few times over: 128 MB each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the softmaxes of a pattern keep and compute, together: in place of the report of one."""

    report: GraphReport

    @property
    def pairs(self) -> int:
        """Pairs kept."""
        return sum(each.pairs for _, each in self.report.softmaxes)

    @property
    def kept(self) -> float:
        """Pairs kept over all pairs of each softmax."""
        every = sum(each.batch * each.heads * each.nq * each.n for _, each in self.report.softmaxes)
        return self.pairs / max(1, every)

    def useful(self, direction: Literal["fwd", "bwd"]) -> float:
        """Pairs kept over pairs computed."""
        computed = sum(each.pairs / each.useful(direction) for _, each in self.report.softmaxes if each.pairs)
        return self.pairs / computed if computed else 1.0


def over_tokens(pattern: BoundPattern) -> tuple[BoundPattern, ...]:
    """A pattern for each softmax over keys as they stand, selections being inputs of it; itself without stages."""
    from spdsl.semantics.softmaxes import softmax_pattern

    if pattern.graph is None:
        return (pattern,)
    return tuple(softmax_pattern(pattern, each.name) for each in pattern.graph.attentions if each.columns == "k")


def selection(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Any]
) -> Callable[[], object] | None:
    """What makes the sets of pairs that the softmaxes keep, without attention; None if nothing is chosen."""
    from spdsl.arguments import first_query
    from spdsl.runtime import graphs

    pattern = attention.bind(q.shape[1], k.shape[1], q.shape[3])
    call = graphs.Inputs(q=q, k=k, v=v, tables=inputs, q_start=first_query(pattern.attend, q.shape[2], k.shape[2]))
    return (lambda: graphs.selections(pattern, call)) if graphs.selections(pattern, call) else None


def checked_sizes(task: Race) -> Race | None:
    """The race with as few tokens as the reference can take; None where its inputs or a grid fix how many there are."""
    sizes = task.sizes
    if sizes.batch * sizes.heads * sizes.nq * sizes.n <= PAIRS_CHECKED:
        return task
    fixed = task.given or task.data is not None
    if fixed or fixed_length(task.pattern, task.parameters, task.layer) is not None:
        return None
    length = int((PAIRS_CHECKED // (sizes.batch * sizes.heads)) ** 0.5)
    return replace(task, sizes=replace(sizes, n=min(sizes.n, length), nq=min(sizes.nq, length)))


def errors_of_all(
    attention: Attention, tensors: tuple[Tensor, ...], d_out: Tensor, inputs: Mapping[str, Any], *, backward: bool
) -> tuple[dict[str, float], Tensor]:
    """Errors of the output and of the worst gradient, by direction, without rows of near ties; and which these are,
    ``[batch, heads, nq]``."""
    from spdsl.api import raise_pending

    leaves = [each.detach().requires_grad_(backward) for each in tensors]
    exact = [each.detach().double().requires_grad_(backward) for each in tensors]
    out, truth = attention(*leaves, **inputs), attention.reference(*exact, **inputs)
    assert isinstance(out, Tensor)
    assert isinstance(truth, Tensor)
    raise_pending()
    ties = excused(attention, tensors, inputs, out.detach(), truth.detach())
    found = {"fwd": distance(out.detach()[~ties], truth.detach()[~ties])}
    if backward:
        looked = d_out.masked_fill(ties[..., None], 0.0)
        ours = torch.autograd.grad(out, leaves, looked)
        theirs = torch.autograd.grad(truth, exact, looked.double())
        found["bwd"] = max(distance(one, other) for one, other in zip(ours, theirs, strict=True))
    return found, ties
