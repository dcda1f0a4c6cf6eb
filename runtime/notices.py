"""Who is told of the launches of a thread; needs no Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spdsl.runtime.notes import Started
    from spdsl.runtime.plain import Launch

_watcher: ContextVar[Callable[[Launch | Started], None] | None] = ContextVar("_watcher", default=None)


@contextmanager
def watched(notice: Callable[[Launch | Started], None]) -> Iterator[None]:
    """While this lasts, ``notice`` is told of every launch of this thread."""
    token = _watcher.set(notice)
    try:
        yield
    finally:
        _watcher.reset(token)


def is_watched() -> bool:
    """Whether somebody is told of launches."""
    return _watcher.get() is not None


def tell(launch: Launch | Started) -> None:
    """Tell whoever watches of a launch."""
    notice = _watcher.get()
    if notice is not None:
        notice(launch)
