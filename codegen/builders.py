"""Processes that compile kernels side by side, into the cache."""

from __future__ import annotations

import os

from spdsl.analysis.workers import Workers
from spdsl.codegen import readiness

MOST = 24
"""At the same time: each loads a compiler, in some hundred megabytes."""


def builders_for(count: int) -> Workers:
    """Processes for so many kernels, as far as there are processors; they load the compiler from now on."""
    most = max(1, min(count, processors(), MOST))
    workers = Workers(most)
    for _ in range(most):
        workers.submit(readiness.get_ready)
    return workers


def processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
