"""Questions are answered side by side in processes, of which each may break off, and which end with the block."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import CancelledError

import pytest

from spdsl.analysis.workers import Workers


def _pid(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_several_processes_answer() -> None:
    with Workers(2) as workers:
        answers = [workers.submit(_pid, seconds=0.5) for _ in range(2)]
        pids = {each.result() for each in answers}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_one_that_breaks_off_loses_one_question() -> None:
    with Workers(1) as workers:
        before = workers.submit(_pid).result()
        lost = workers.submit(_end)
        after = workers.submit(_pid)
        with pytest.raises((EOFError, OSError)):
            lost.result()
        assert after.result() not in (before, os.getpid())


def test_none_of_them_outlives_the_block() -> None:
    start = time.monotonic()
    with Workers(1) as workers:
        running, waiting = workers.submit(_pid, seconds=60.0), workers.submit(_pid)
        while not workers._children:
            time.sleep(0.01)
        [child] = workers._children
    assert child.process.returncode is not None
    for each in (running, waiting):
        with pytest.raises(CancelledError):
            each.result()
    assert time.monotonic() - start < 30
