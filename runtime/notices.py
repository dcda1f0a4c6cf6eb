"""Who watches a thread, and is told of its launches; needs no Triton.

Who watches has to see how everything is made that depends on tensors, so that caches serve them only what was made
under their eyes: see `spdsl.runtime.recent.ByContent`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from spdsl.runtime.notes import Started


class Watcher(Protocol):
    """Who watches."""

    @property
    def name(self) -> object:
        """What tells watchers apart in caches, and keeps nothing."""
        ...

    def add(self, note: Started) -> None:
        """Be told of a launch."""
        ...

    def trust(self, value: object) -> None:
        """Be told of something older that depends on no tensor."""
        ...


_watcher: ContextVar[Watcher | None] = ContextVar("_watcher", default=None)


@contextmanager
def watched(by: Watcher) -> Iterator[None]:
    """While this lasts, somebody is told of every launch of this thread."""
    token = _watcher.set(by)
    try:
        yield
    finally:
        _watcher.reset(token)


def is_watched() -> bool:
    """Whether somebody is told of launches."""
    return _watcher.get() is not None


def watcher() -> Watcher | None:
    """Who is told of launches."""
    return _watcher.get()


def tell(note: Started) -> None:
    """Tell whoever watches of a launch."""
    by = _watcher.get()
    if by is not None:
        by.add(note)
