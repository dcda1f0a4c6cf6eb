"""The tile relation, the boxes and the residues of a mask, derived in a process of its own that can be ended.

isl answers exactly, but a call of it cannot be interrupted, and under an operation limit it was seen to crash once in
some thousand random programs.  A derivation that does not end, or does not survive, costs its closed form alone: the
tiles are then listed at run time, or made of consecutive rows.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from functools import lru_cache
from typing import IO, Any, TypeVar

from spdsl.analysis.box_tiles import BoxRelation
from spdsl.analysis.tiles import ListWalk, Residues, Shape, TileRelation
from spdsl.semantics.nodes import Expr, Table

T = TypeVar("T")

SECONDS = 20.0
"""How long a derivation may take; its own budget ends it earlier unless a single call of isl hangs."""


def begin() -> None:
    """Start the worker, so that it loads isl while this process does something else."""
    _worker()


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
    residues: Residues | None = None,
) -> TileRelation:
    """`tile_relation` of the same arguments, from the worker."""
    return _derive(keep, block_q, block_k, shape, heads, groups, tuple(tables), length, residues)


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
    residues: Residues | None,
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
        "residues": residues,
    }
    from spdsl.analysis.relation import tile_relation  # and isl, which no process needs whose plans are kept

    try:
        return _asked(tile_relation, arguments)
    except (OSError, EOFError, TimeoutError) as problem:
        reason = "took too long" if isinstance(problem, TimeoutError) else "broke off"
        walk = ListWalk(reason=f"the search for a closed form {reason}")
        return TileRelation(
            block_q=block_q, block_k=block_k, shape=shape, by_query=walk, by_key=walk, residues=residues
        )


def find_residues(
    keep: Expr, *, shape: Shape, heads: int, groups: int, tables: Sequence[Table] = ()
) -> Residues | None:
    """`residues_of` of the same arguments, from the worker; None where the search does not end."""
    return _find_residues(keep, shape, heads, groups, tuple(tables))


@lru_cache(maxsize=1024)
def _find_residues(keep: Expr, shape: Shape, heads: int, groups: int, tables: tuple[Table, ...]) -> Residues | None:
    from spdsl.analysis.residues import residues_of

    arguments = {"keep": keep, "shape": shape, "heads": heads, "groups": groups, "tables": tables}
    try:
        return _asked(residues_of, arguments)
    except (OSError, EOFError, TimeoutError):
        return None


def find_boxes(
    keep: Expr,
    *,
    extents: tuple[int, ...],
    tail: bool,
    block_q: int,
    block_k: int,
    heads: int,
    groups: int,
    tables: Sequence[Table] = (),
) -> BoxRelation | None:
    """`boxes_of` of the same arguments, from the worker; None where the search does not end."""
    return _find_boxes(keep, extents, tail, block_q, block_k, heads, groups, tuple(tables))


@lru_cache(maxsize=1024)
def _find_boxes(
    keep: Expr,
    extents: tuple[int, ...],
    tail: bool,
    block_q: int,
    block_k: int,
    heads: int,
    groups: int,
    tables: tuple[Table, ...],
) -> BoxRelation | None:
    from spdsl.analysis.boxes import boxes_of

    arguments = {
        "keep": keep,
        "extents": extents,
        "tail": tail,
        "block_q": block_q,
        "block_k": block_k,
        "heads": heads,
        "groups": groups,
        "tables": tables,
    }
    return bounded(boxes_of, arguments, seconds=SECONDS)


def bounded(question: Callable[..., T], arguments: Mapping[str, Any], *, seconds: float) -> T | None:
    """The answer of any function of this layer to arguments that can be pickled, from the worker; None where it does
    not end in time, or does not survive."""
    try:
        return _asked(question, arguments, seconds)
    except (OSError, EOFError, TimeoutError):
        return None


def _asked(question: Callable[..., T], arguments: Mapping[str, Any], seconds: float | None = None) -> T:
    """The answer of the worker, or of this process where none can be started.

    Raises:
        OSError, EOFError, TimeoutError: the worker broke off; it is stopped.
    """
    worker = _worker()
    if worker is None:
        return question(**arguments)
    try:
        return worker.ask(question, arguments, SECONDS if seconds is None else seconds)
    except (OSError, EOFError, TimeoutError):
        global _losses
        _losses += 1
        worker.stop()
        raise


_losses = 0


def losses() -> int:
    """How many questions this process has asked in vain."""
    return _losses


class Worker:
    """A child process that answers one question after the other, spoken to with pickles over its pipes."""

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

    def ask(self, question: Callable[..., T], arguments: Mapping[str, Any], seconds: float) -> T:
        """The child's answer.

        Raises:
            OSError, EOFError: the child has ended.
            TimeoutError: it took longer than ``seconds``.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            try:
                pickle.dump((question, arguments), self.process.stdin)
                self.process.stdin.flush()
                answer: Future[tuple[bool, Any]] = self.reader.submit(_read, self.process.stdout)
                succeeded, found = answer.result(seconds)
            except LateError as problem:  # not the built-in one before Python 3.11
                raise TimeoutError from problem
            except (ValueError, RuntimeError, pickle.UnpicklingError) as problem:
                # Pipes and threads of a child that was ended say so in words of their own; half an answer is none.
                if self.process.poll() is None:
                    raise
                raise EOFError("the child has ended") from problem
        return found if succeeded else question(**arguments)

    def stop(self) -> None:
        """End the child, whatever it is doing; the next question starts another."""
        global _current
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            # Whoever reads finds the end; a pipe that is closed meanwhile is none.
            self.reader.shutdown()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    _close(pipe)
        if _current is self:
            _current = None


def _read(pipe: IO[bytes]) -> tuple[bool, Any]:
    """Whether the question was answered, and how."""
    return pickle.load(pipe)  # type: ignore[no-any-return]  # noqa: S301  # what our own child wrote


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:
        return  # what was left to write has no reader any more


_current: Worker | None = None
_starting = threading.Lock()


def _worker() -> Worker | None:
    """The worker of this process (a fork does not share its parent's), or None where none can be started."""
    global _current
    with _starting:
        if _current is None or _current.owner != os.getpid():
            try:
                _current = Worker() if sys.executable else None
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
            question, arguments = pickle.load(questions)  # noqa: S301  # what our own parent wrote
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = (True, question(**arguments))
        except Exception as problem:  # noqa: BLE001  # of any kind: the parent meets it again
            answer = (False, repr(problem))
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
