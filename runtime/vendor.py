"""Whose GPUs a thread works for: those that torch was built for, or those of one that is stood in for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_stood_in: ContextVar[bool | None] = ContextVar("_stood_in", default=None)


def is_amd() -> bool:
    """Whether it is one of AMD's."""
    given = _stood_in.get()
    return torch.version.hip is not None if given is None else given


@contextmanager
def working_for(*, amd: bool) -> Iterator[None]:
    """While this lasts, this thread works for a GPU of AMD's, or for none of these."""
    token = _stood_in.set(amd)
    try:
        yield
    finally:
        _stood_in.reset(token)
