"""The tile relation, derived in a process of its own that can be ended.

isl answers exactly, but a call of it cannot be interrupted, and under an operation limit it was seen to crash once in
some thousand random programs.  A derivation that does not end, or does not survive, costs its closed form alone: the
tiles are then listed at run time.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from functools import lru_cache
from typing import IO, Any

from spdsl.analysis.relation import tile_relation
from spdsl.analysis.tiles import ListWalk, Shape, TileRelation
from spdsl.semantics.nodes import Expr, Table

SECONDS = 20.0
"""How long a derivation may take; its own budget ends it earlier unless a single call of isl hangs."""


def derive(
    keep: Expr,
    *,
    block_q: int,
    block_k: int,
    shape: Shape,
    heads: int,
    groups: int,
    tables: Sequence[Table] = (),
    length: int | None = None,
) -> TileRelation:
    """`tile_relation` of the same arguments, from the worker."""
    return _derive(keep, block_q, block_k, shape, heads, groups, tuple(tables), length)


@lru_cache(maxsize=1024)
def _derive(
    keep: Expr,
    block_q: int,
    block_k: int,
    shape: Shape,
    heads: int,
    groups: int,
    tables: tuple[Table, ...],
    length: int | None,
) -> TileRelation:
    arguments: dict[str, Any] = {
        "keep": keep,
        "block_q": block_q,
        "block_k": block_k,
        "shape": shape,
        "heads": heads,
        "groups": groups,
        "tables": tables,
        "length": length,
    }
    worker = _worker()
    if worker is None:
        return tile_relation(**arguments)
    try:
        return worker.ask(arguments)
    except (OSError, EOFError, TimeoutError) as problem:
        worker.stop()
        reason = "took too long" if isinstance(problem, TimeoutError) else "broke off"
        walk = ListWalk(reason=f"the search for a closed form {reason}")
        return TileRelation(block_q=block_q, block_k=block_k, shape=shape, by_query=walk, by_key=walk)


class _Worker:
    """A child process that derives one relation after the other, spoken to with pickles over its pipes."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="spdsl-analysis")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spdsl.analysis.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def ask(self, arguments: dict[str, Any]) -> TileRelation:
        """The child's answer.

        Raises:
            OSError, EOFError: the child has ended.
            TimeoutError: it took longer than `SECONDS`.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            pickle.dump(arguments, self.process.stdin)
            self.process.stdin.flush()
            answer: Future[Any] = self.reader.submit(_read, self.process.stdout)
            try:
                found = answer.result(SECONDS)
            except LateError as problem:  # not the built-in one before Python 3.11
                raise TimeoutError from problem
        return found if isinstance(found, TileRelation) else tile_relation(**arguments)

    def stop(self) -> None:
        """End the child, whatever it is doing; the next question starts another."""
        global _current
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    _close(pipe)
            self.reader.shutdown(wait=False)
        if _current is self:
            _current = None


def _read(pipe: IO[bytes]) -> object:
    return pickle.load(pipe)  # noqa: S301  # what our own child wrote


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:
        return  # what was left to write has no reader any more


_current: _Worker | None = None
_starting = threading.Lock()


def _worker() -> _Worker | None:
    """The worker of this process (a fork does not share its parent's), or None where none can be started."""
    global _current
    with _starting:
        if _current is None or _current.owner != os.getpid():
            try:
                _current = _Worker() if sys.executable else None
            except OSError:
                _current = None
        return _current


@atexit.register
def _stop() -> None:
    if _current is not None:
        _current.stop()


def main() -> None:
    """Answer questions from standard input until it ends.  What fails here fails again, and visibly, in the parent."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may write among the answers
    while True:
        try:
            arguments = pickle.load(questions)  # noqa: S301  # what our own parent wrote
        except EOFError:
            return
        try:
            answer: object = tile_relation(**arguments)
        except Exception as problem:  # noqa: BLE001  # of any kind: the parent meets it again
            answer = repr(problem)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
