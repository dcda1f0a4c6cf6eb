"""What is made of the tables that an expression reads: once for the forward and the backward of a call, and again of
other tables by its tape.

From: a call, the names of tables, and how something is made of these.  To: what is made, as it is or as it was a moment
ago.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol, TypeVar

from torch import Tensor

from spdsl.runtime.calls import Call
from spdsl.runtime.checks import captured
from spdsl.runtime.evaluate import Tables, tables_for, with_batch
from spdsl.runtime.pairs import Pairs, pairs_of
from spdsl.runtime.recent import ByContent


class Lists(Protocol):
    """A record of tensors."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """These, in the order of its fields."""
        ...


T = TypeVar("T", bound=Lists)

Make = Callable[[Pairs, Tables], T]
"""Makes something of the pairs of a call and its tables as they are read."""


def made_of_tables(call: Call, names: Collection[str], of: object, recent: ByContent[T], make: Make[T]) -> T:
    """What ``make``, whose course depends on ``of``, makes of the tables of these ``names``.

    What is ``recent`` is given again for the same tables, but not in a CUDA graph, which is replayed with other ones.
    """
    declared = tuple(table for table in call.plan.tables if table.name in names)
    given, pairs = tuple(call.tables[table.name] for table in declared), pairs_of(call)

    def made(*tables: Tensor) -> T:
        values = {each.name: with_batch(each, tensor) for each, tensor in zip(declared, tables, strict=True)}
        return make(pairs, tables_for(declared, values))

    key = (id(of), call.q.shape[:3], call.keys, call.q_start, *call.parameters.values(), str(call.q.device))
    found = made(*given) if captured(call.q) else recent.get(key, given, of, partial(made, *given), compare=False)
    call.recorder.made(found.tensors, lambda *tables: made(*tables).tensors, *given)
    return found
