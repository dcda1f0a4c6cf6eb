"""What a first kernel needs is begun with the first import, where torch has started CUDA and nothing is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
from spdsl.codegen import readiness
from spdsl.analysis import worker
torch.cuda.is_initialized = lambda: True
begun = []
readiness.begin = lambda: begun.append("readiness")
worker.begin = lambda: begun.append("worker")
import spdsl
spdsl.compile
print(*begun)
"""


COLD = """
import torch
from spdsl.codegen import readiness
torch.cuda.is_initialized = lambda: True
failures = []
def told(make):
    try:
        make()
    except Exception as problem:
        failures.append(f"{make.__name__}: {problem}")
readiness._quietly = told
import spdsl
spdsl.compile
for need in ("templates", "compiler"):
    readiness.wait(need)
assert all("_driver: " in each and "active drivers" in each for each in failures), failures  # there is no GPU
from triton.runtime.cache import triton_key
print(triton_key.cache_info().currsize)
"""


def test_nothing_fails_beside_the_imports(tmp_path: Path) -> None:
    """Nobody has imported triton before; whoever imports it in two threads at once gets half of it."""
    found = run(COLD, tmp_path)
    assert found == ["1"]


def run(program: str, cache: Path) -> list[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SPDSL_", "TRITON_"))}
    environment = plain | {"SPDSL_CACHE_DIR": str(cache)}
    words = [sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.split()


def test_a_process_that_will_need_all_begins_with_its_import(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == ["worker", "readiness"]


@pytest.mark.parametrize(
    ("started", "settings", "kept"),
    [
        (True, {}, False),
        (True, {}, True),
        (False, {}, False),
        (True, {"SPDSL_BACKEND": "cpu"}, False),
        (True, {"TRITON_INTERPRET": "1"}, False),
        (True, {"SPDSL_CACHE_PATH": "elsewhere"}, False),
    ],
)
def test_others_wait_until_they_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool, settings: dict[str, str], kept: bool
) -> None:
    """What is kept may be all that is needed, and without a GPU nothing is."""
    import torch

    from spdsl import foresight

    begun: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(foresight.worker, "begin", lambda: begun.append("worker"))
    monkeypatch.setattr(foresight.readiness, "begin", lambda: begun.append("readiness"))
    for name in ("SPDSL_BACKEND", "TRITON_INTERPRET", "SPDSL_CACHE_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"SPDSL_CACHE_DIR": str(tmp_path)} | settings).items():
        monkeypatch.setenv(name, value)
    if kept:
        (tmp_path / "v1" / "entries").mkdir(parents=True)
    all_of_it = started and not settings and not kept
    assert foresight.begin() == all_of_it
    assert begun == (["worker", "readiness"] if all_of_it else [])
