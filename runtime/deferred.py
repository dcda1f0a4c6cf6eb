"""Faults that a GPU finds: kernels set flags, and an error is raised once these are known; nobody waits for them.

From: the faults of a call, each with a flag on the device.  To: the error of the first that is set, at a later call or
when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spdsl.diagnostics import SpatError
from spdsl.runtime.values import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """Faults that a device was asked for, ``flags`` in their order, and the event after which they are known."""

    faults: tuple[Fault, ...]
    flags: Tensor
    event: torch.cuda.Event = field(compare=False)


_pending: list[_Pending] = []

_apart: ContextVar[list[_Pending] | None] = ContextVar("_apart", default=None)


@contextmanager
def noted_apart() -> Iterator[None]:
    """While this lasts, checks of this thread are nobody's: they are of a GPU that is not there."""
    token = _apart.set([])
    try:
        yield
    finally:
        _apart.reset(token)


def _noted() -> list[_Pending]:
    """The checks that have been begun, of this process."""
    given = _apart.get()
    return _pending if given is None else given


def defer(faults: tuple[Fault, ...]) -> None:
    """Have the flags of faults copied to the host, and look at them later."""
    found = torch.stack([fault.flag.any() for fault in faults])
    flags = torch.empty(found.shape, dtype=torch.bool, pin_memory=True).copy_(found, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    _noted().append(_Pending(faults=faults, flags=flags, event=event))


def _raise_known(*, wait: bool) -> None:
    found = list(_known(wait=wait))
    if found:
        raise found[0]


def _known(*, wait: bool) -> Iterator[SpatError]:
    """The errors of checks that have ended, which are then forgotten."""
    noted = _noted()
    for each in list(noted):
        if wait:
            each.event.synchronize()
        elif not each.event.query():
            continue
        noted.remove(each)
        for fault, flag in zip(each.faults, each.flags.tolist(), strict=True):
            if flag:
                yield fault.error()


def check_earlier() -> None:
    """Raise the error of an earlier call, if it is known by now.

    Raises:
        SpatError: as `spdsl.runtime.checks.check_call`.
    """
    if _noted() and not torch.cuda.is_current_stream_capturing():
        _raise_known(wait=False)


def raise_pending() -> None:
    """Wait for the checks of earlier calls and raise the error that one of them has found.

    Raises:
        SpatError: as `spdsl.runtime.checks.check_call`.
    """
    _raise_known(wait=True)
