"""What calls ask for, and the plans that they get.

From: the tensors of a call and its key.  To: a plan.  How a request becomes one is given from above (`install`),
because planning begins with parsing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.analysis.few import few_keys, few_rows
from spdsl.analysis.plans import Kind, Plan, Tiles
from spdsl.analysis.tiles import Shape
from spdsl.semantics.free import LARGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a call asks for: a key, the types and sizes that kernels are specialised on, and the gradients wanted.

    ``lengths`` are those of queries and keys, rounded up to powers of two: kernels do not depend on them, but tiles may
    have been chosen for them.  ``tiles`` are those that were.  ``few``, ``few_keys``, ``page`` and ``later`` are those
    of `Problem`, the first two on any back end.
    """

    key: str
    dtype: torch.dtype
    heads: int
    groups: int
    head_dim: int
    value_dim: int
    shape: Shape
    device: torch.device
    tables: tuple[torch.dtype, ...]
    gradients: tuple[int, ...] = ()
    lengths: tuple[int, int] = (0, 0)
    tiles: tuple[tuple[Kind, Tiles], ...] = ()
    few: int = 0
    few_keys: bool = False
    page: int = 0
    later: bool = False


PAGED = "paged"
"""The operators' shape of calls whose keys lie in pages, ``[pages, groups, page, d]``; places have these after them."""


def rounded_up(number: int) -> int:
    """The next power of two, with the sign of the number."""
    size = 1 << (abs(number) - 1).bit_length() if number else 0
    return size if number >= 0 else -size


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan, the name of the engine that runs it, and the free parameters of the key in the order of their values.

    ``weighed``: whether each call's values have to be known before the plan is taken; ``room``: the largest magnitude
    of values for which the kernels' ints stay within 32 bits.
    """

    plan: Plan
    backend: str
    free: tuple[str, ...] = ()
    deterministic: bool = False
    weighed: bool = False
    room: int = LARGEST

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the operator's list of tables."""
        return tuple(table.name for table in self.plan.problem.pattern.tables)

    def parameters(self, values: Sequence[int]) -> dict[str, int]:
        """The values that the plan leaves open, by the names of their variables."""
        given = dict(zip(self.free, values, strict=False))
        return {each.variable: given[each.name] for each in self.plan.problem.pattern.free}


Prepare = Callable[[Request, tuple[int, ...]], Prepared]
_prepare: list[Prepare] = []


def install(prepare: Prepare) -> None:
    """Tell the operators how a request becomes a plan; the last call counts."""
    _prepare[:] = [prepare]


def request(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor],
    key: str,
    shape: str,
    values: Sequence[int],
    gradients: tuple[int, ...] | None,
    later: bool = False,
) -> Prepared:
    """The plan of a call, or with ``gradients`` (numbers of tables) that of its backward, which is the same for few
    queries as for many."""
    paged = shape == PAGED
    return _prepare[0](
        Request(
            key=key,
            dtype=q.dtype,
            heads=q.shape[1],
            groups=k.shape[1],
            head_dim=q.shape[3],
            value_dim=v.shape[3],
            shape="batched" if paged else shape,  # type: ignore[arg-type]  # a str in the operator's schema
            device=q.device,
            tables=tuple(table.dtype for table in tables),
            gradients=gradients or (),
            lengths=(rounded_up(q.shape[2]), rounded_up(k.shape[2])),
            few=few_rows(shape, q.shape[2], q.shape[1], k.shape[1]) if gradients is None else 0,
            few_keys=gradients is not None and few_keys(shape, q.shape[2], k.shape[2], k.shape[1]),
            page=k.shape[2] if paged else 0,
            later=later,
        ),
        tuple(values),
    )
