"""Values that cannot be computed, remembered until it is known whether any pair depends on them.

An index outside its table is no mistake behind a false guard (``known[q] and table[id[q]] > 0``).  So each value comes
with a tensor of marks: 0 where it is good, else the number of the fault that spoils it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spdsl.diagnostics import SpatError, error
from spdsl.semantics.nodes import Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A place in the pattern that has no value at some points, and what to say about one of them."""

    bad: Tensor
    value: Tensor
    code: str
    message: str
    help: str
    expr: Expr

    def error(self, where: Tensor) -> SpatError:
        """The remark about the first bad point of ``where``; ``{value}`` in the message is the value there."""
        bad, value = self.bad, self.value
        if all(1 in (a, b) or a == b for a, b in zip(bad.shape, where.shape, strict=True)) and bool(
            (bad & where).any()
        ):
            # A fault inside a reduction has points of its own, of which any bad one will do.
            bad = bad & where
        shown = int(value.broadcast_to(bad.shape)[bad].flatten()[0])
        return error(self.code, self.message.format(value=shown), self.expr.span, help=self.help)


class Faults:
    """All faults met while evaluating."""

    def __init__(self) -> None:
        self._found: list[Fault] = []

    def mark(self, fault: Fault) -> Tensor | None:
        """The marks of a fault, or None if there is no bad point."""
        if not bool(fault.bad.any()):
            return None
        self._found.append(fault)
        return fault.bad.to(torch.int32) * len(self._found)

    def raise_at(self, marks: Tensor | None, where: Tensor) -> None:
        """Raise the error of a fault that some point of ``where`` depends on."""
        if marks is None:
            return
        worst = int(torch.where(where, marks, 0).max()) if where.numel() and marks.numel() else 0
        if worst > 0:
            raise self._found[worst - 1].error(where)


def either(*marks: Tensor | None) -> Tensor | None:
    """The marks of a value that depends on several others."""
    whole: Tensor | None = None
    for part in marks:
        whole = part if whole is None else whole if part is None else torch.maximum(whole, part)
    return whole


def only_where(condition: Tensor, marks: Tensor | None) -> Tensor | None:
    """The marks of a value that is looked at only where ``condition`` holds."""
    return None if marks is None else torch.where(condition, marks, 0)
