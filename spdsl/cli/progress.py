"""A line on standard error that says what is being done, where a person watches; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Watch: TypeAlias = Callable[[str, int, int | None], None]
"""Told what is being done, how many steps are done, and of how many (None where that is not known)."""


def _nothing(text: str, done: int, steps: int | None) -> None:
    """Nobody watches."""
    del text, done, steps


@contextmanager
def progress(what: str, *, quiet: bool = False, timing: bool = False) -> Iterator[Watch]:
    """Show ``what`` and what the caller tells from then on, until the end of the block leaves no trace of it.

    Where ``timing`` goes on, the line changes only when something is told: nothing else runs beside what is timed.
    """
    if quiet or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    counted = (BarColumn(bar_width=24), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=not timing) as bar:
        task = bar.add_task(what, total=None)

        def watch(text: str, done: int, steps: int | None) -> None:
            if steps is not None and bar.columns == columns:
                bar.columns = (columns[0], *counted, *columns[1:])
            bar.update(task, description=text, completed=done, total=steps, refresh=timing)

        yield watch
