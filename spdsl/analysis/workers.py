"""Several processes that answer questions side by side, for as long as a block lasts.

Compilers written in Python hold its lock for much of their time, so threads of one process gain little.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from spdsl.analysis.worker import Worker

T = TypeVar("T")

_SECONDS = 600.0
"""How long an answer may take."""


class Workers:
    """So many children, each started by the first question that none of the others is free for.

    A child that ends loses its question alone; where none can be started, questions are answered in this process.
    """

    def __init__(self, count: int) -> None:
        self._mine = threading.local()
        self._children: list[Worker] = []
        self._over = False
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="spdsl-aside")

    def submit(self, question: Callable[..., T], **arguments: Any) -> Future[T]:
        """The answer to come.  It raises OSError, EOFError or TimeoutError where the child broke off, and what the
        question itself raises."""
        return self._pool.submit(self._answer, question, arguments)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, found: BaseException | None, at: TracebackType | None) -> None:
        """End them, whatever they are doing; what is not answered is cancelled."""
        self._over = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in self._children:
            child.stop()

    def _answer(self, question: Callable[..., T], arguments: dict[str, Any]) -> T:
        child = self._child()
        if child is None:
            return question(**arguments)
        try:
            return child.ask(question, arguments, _SECONDS)
        except (OSError, EOFError, TimeoutError):
            if self._over:
                raise CancelledError from None
            child.stop()
            del self._mine.child
            raise

    def _child(self) -> Worker | None:
        """That of this thread."""
        if not hasattr(self._mine, "child"):
            try:
                self._mine.child = Worker()
            except OSError:
                return None
            self._children.append(self._mine.child)
            if self._over:  # it was started while all others were ended
                self._mine.child.stop()
        return self._mine.child  # type: ignore[no-any-return]  # what threads keep has no types
