"""How long closed forms take to derive: ``python -m benchmarks.analysis --out analysis.json``.

The plans of every library case and of the masks of the suite for sm_90, all kernels at their default tiles, and walks
of random affine programs at two tile sizes.  Times are processor times of the answers in the worker, without its start,
summed over the questions that one program asks.  No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from spdsl.analysis import worker

TILES = ((128, 64), (64, 128))
"""Queries and keys of a tile of the random programs: those of forward and dkdv at head dim 128."""


def timed(question: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, float]:
    """The answer and the processor time that it took, in seconds; runs in the worker, which has one thread."""
    start = time.process_time()
    return question(**arguments), time.process_time() - start


class Clock:
    """Adds up the time of the worker's answers.  One that does not end counts as the limit, and as unfinished."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.unfinished = 0
        self._ask = worker._asked  # noqa: SLF001  # the one place that all questions pass

    def ask(self, question: Callable[..., Any], arguments: Mapping[str, Any], seconds: float | None = None) -> Any:
        """In place of the worker's own function."""
        try:
            answer, spent = self._ask(timed, {"question": question, "arguments": arguments}, seconds)
        except (OSError, EOFError, TimeoutError):
            self.seconds += worker.SECONDS if seconds is None else seconds
            self.unfinished += 1
            raise
        self.seconds += spent
        return answer

    def of(self, work: Callable[[], object]) -> float:
        """The seconds that the worker spends for ``work``."""
        before = self.seconds
        work()
        return self.seconds - before


def library(clock: Clock) -> dict[str, float]:
    """Seconds by case."""
    import torch

    import spdsl
    from benchmarks.cases import CASES as SUITE
    from spdsl.kernels import plan_like
    from tests.library.cases import CASES

    found = {}
    small = [(case.id, case.name, case.parameters, case.n or 4096) for case in CASES]
    for name, pattern, parameters, n in (*small, *((c.name, c.pattern, c.parameters, c.n) for c in SUITE)):
        given_pattern = spdsl.loads(pattern) if "\n" in pattern else pattern
        key = spdsl.compile(given_pattern, **parameters)._key  # noqa: SLF001  # what the command takes from its words
        rows = torch.zeros((), dtype=torch.bfloat16).expand(1, 8, n, 128)
        found[name] = clock.of(lambda key=key, rows=rows: plan_like(key, rows, rows, rows, "sm_90"))  # type: ignore[misc]
    return found


def programs(clock: Clock, count: int) -> list[float]:
    """Seconds of each of so many random programs: its residues, and both directions at both tile sizes."""
    from tests.analysis.build import Term
    from tests.analysis.programs import HEADS, LARGE, SHAPES, WINDOW, predicates

    found = []

    @seed(20261124)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(keep=predicates(depth=3, scale=LARGE), shape=SHAPES, tables=st.just((WINDOW,)))
    def each(keep: Term, shape: Any, tables: Any) -> None:
        def derived() -> None:
            worker.find_residues(keep.expr, shape=shape, heads=HEADS, groups=HEADS, tables=tables)
            for q, k in TILES:
                worker.derive(keep.expr, block_q=q, block_k=k, shape=shape, heads=HEADS, groups=HEADS, tables=tables)

        found.append(clock.of(derived))

    each()
    return found


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds in the middle, of one in twenty at least, and at most."""
    ordered = sorted(seconds)
    shown = {
        "median": median(ordered),
        "95th in a hundred": ordered[int(0.95 * (len(ordered) - 1))],
        "most": ordered[-1],
    }
    return {name: round(1e3 * value, 1) for name, value in shown.items()}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("analysis.json"), help="the JSON file to write")
    parser.add_argument("--programs", type=int, default=300, help="how many random programs")
    arguments = parser.parse_args()
    clock = Clock()
    worker._asked = clock.ask  # noqa: SLF001  # as above
    cases = library(clock)
    unfinished = clock.unfinished
    random = programs(clock, arguments.programs)
    result = {
        "cores": os.cpu_count(),
        "library": {"cases": len(cases), "unfinished": unfinished, "ms": summary(list(cases.values()))},
        "random programs": {
            "programs": len(random),
            "unfinished": clock.unfinished - unfinished,
            "ms": summary(random),
        },
        "ms of each case": {name: round(1e3 * seconds, 1) for name, seconds in cases.items()},
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("library", "random programs")}, indent=1))


if __name__ == "__main__":
    from benchmarks.analysis import main as run  # under a name that the worker can import

    run()
