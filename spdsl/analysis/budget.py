"""Bounds on the time that isl takes.

isl's operation counter limits one step, a deadline looked at between steps limits their sum.  Neither interrupts a
single call that the counter does not see into.  What a caller does when the budget ends is its own ladder; each rung
masks more tiles and stays correct.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import islpy as isl

OPERATIONS = 300_000
"""isl operations for one step: about a second in the worst cases measured."""

PROOF_OPERATIONS = 10_000
"""isl operations for one proof; those that need more rarely end well, and can take many seconds for each 100,000."""

PROOFS = 150
"""Proofs for one walk."""

SECONDS = 5.0
"""Wall-clock time for one walk.  The counts above end almost all derivations, so that results do not depend on time."""

_CONTEXT_LOCK = threading.RLock()  # all isl objects share one context, and so one counter


class BudgetSpentError(Exception):
    """The time, the operations or the proofs that a derivation may use are used up."""


class Budget:
    """A running account of proofs and time; made by `limited`."""

    def __init__(self, seconds: float, proofs: int) -> None:
        self.deadline = time.monotonic() + seconds
        self.proofs = proofs

    def step(self) -> None:
        """Begin the next isl step with a fresh operation count.  Raises `BudgetSpentError` after the deadline."""
        if time.monotonic() > self.deadline:
            raise BudgetSpentError("time")
        isl.DEFAULT_CONTEXT.reset_operations()

    def prove(self, question: Callable[[], bool]) -> bool:
        """Ask a yes-or-no question; not finding out counts as no.

        Raises `BudgetSpentError` when nothing more may be asked.
        """
        if self.proofs <= 0:
            raise BudgetSpentError("proofs")
        self.proofs -= 1
        self.step()
        context = isl.DEFAULT_CONTEXT
        limit = context.get_max_operations()
        context.set_max_operations(min(limit, PROOF_OPERATIONS))
        try:
            return question()
        except isl.Error:
            return False
        finally:
            context.set_max_operations(limit)
            context.reset_operations()


def _is_exhausted() -> bool:
    """Whether the operation limit is hit.  The error itself need not say so: any call that fails inside may word it."""
    try:
        isl.Set("{ [i] : 0 <= i < 9 and i mod 3 = 1 }")
    except isl.Error:
        return True
    return False


def as_int(value: isl.Val) -> int:
    """A value of isl as an int; reading it costs operations, too, of which none may be left.

    Raises:
        BudgetSpentError: isl gave up while it computed the value.
    """
    isl.DEFAULT_CONTEXT.reset_operations()
    if not value.is_int():
        raise BudgetSpentError("operations")
    return int(value.to_python())


@contextmanager
def operations_end_as_spent() -> Iterator[None]:
    """Turn isl's error at the operation limit into `BudgetSpentError`, and let the next step begin afresh."""
    try:
        yield
    except isl.Error as problem:
        if not _is_exhausted():
            raise
        isl.DEFAULT_CONTEXT.reset_operations()
        raise BudgetSpentError("operations") from problem


@contextmanager
def limited(*, seconds: float = SECONDS, proofs: int = PROOFS, operations: int = OPERATIONS) -> Iterator[Budget]:
    """Run isl under limits; an exceeded operation limit leaves the block as `BudgetSpentError`.

    After the limit is hit every isl call fails, so the limit is always lifted again on the way out.
    """
    context = isl.DEFAULT_CONTEXT
    with _CONTEXT_LOCK:
        context.reset_operations()
        context.set_max_operations(operations)
        try:
            with operations_end_as_spent():
                yield Budget(seconds, proofs)
        finally:
            context.reset_operations()
            context.set_max_operations(0)
