"""Compiled kernels in the cache: what a launch compiles is found by the next process, and what is built ahead of time
by a launch.  A driver that has no GPU behind it stands in for Triton's; nothing is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted")

ROOT = Path(__file__).parents[2]

LAUNCH = """
import json, os, sys
import torch, triton
from triton.backends.compiler import GPUTarget
import spdsl
from spdsl.cache.store import store
from spdsl.codegen import binaries
from spdsl.kernels import plan_like
from spdsl.runtime import launch
from spdsl.runtime.calls import Call
from spdsl.runtime.triton_engine import TritonEngine

PATTERN = os.environ.get("PATTERN", "causal")

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

triton.runtime.driver.set_active(Driver())
compiled, compiler = [], triton.compiler.compiler.compile
def count(src, **rest):
    compiled.append(src.name)
    return compiler(src, **rest)
triton.compiler.compile = triton.compiler.compiler.compile = count

def run(self, kernel, grid, given, stages, device):
    function = self._function(kernel)
    options = binaries.options_of(kernel.warps, stages, kernel.registers)
    with binaries.keeping(function, 0):
        made = function.run(**given, grid=grid, warmup=True, **options)
    assert made.kernel[:4] == b"\\x7fELF" and made.metadata.shared > 0

launch.Loaded._run = run
q = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16)
plan = plan_like(spdsl.compile(PATTERN)._key, q, q, q, "sm_90").plan
tables = {"doc": torch.arange(256, dtype=torch.int32)[None] // 100} if PATTERN == "documents" else {}
print("ready", flush=True)
sys.stdin.readline()
call = Call(plan=plan, q=q, k=q, v=q, tables=tables)
out, lse = TritonEngine().forward(call)
if sys.argv[1:] == ["backward"]:
    TritonEngine().backward(call, out, lse, out, None, frozenset("qkv"))
import pathlib
print(json.dumps({"compiled": compiled, "kinds": sorted(e.kind for e in store().entries() if e.kind != "template")}))
"""


def launch(cache: Path, processes: int, *words: str, **settings: str) -> list[dict[str, list[str]]]:
    """What each of so many processes compiled that start together, and what it found in the cache then."""
    folders = {"SPDSL_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
    environment = os.environ | folders | settings
    command = [sys.executable, "-c", LAUNCH, *words]
    started = [
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT, env=environment) for _ in range(processes)
    ]
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in started:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    found = [each.communicate(timeout=300)[0] for each in started]
    assert [each.returncode for each in started] == [0] * processes
    return [json.loads(text) for text in found]


@pytest.mark.parametrize("processes", [2, pytest.param(16, marks=pytest.mark.slow)])
def test_processes_that_start_together_compile_once(tmp_path: Path, processes: int) -> None:
    together = launch(tmp_path, processes)
    assert sorted(each for found in together for each in found["compiled"]) == ["forward"]
    [later] = launch(tmp_path, 1)
    assert later == {"compiled": [], "kinds": ["kernel", "source", "source"]}
    assert not (tmp_path / "triton").exists()  # Triton's own cache is not used


@pytest.mark.parametrize("pattern", ["causal", "documents"])
def test_a_launch_finds_what_was_built_ahead_of_time(tmp_path: Path, pattern: str) -> None:
    code = f"""
import torch, spdsl
from spdsl.codegen.aot import compile_kernels
from spdsl.kernels import plan_like
q = torch.zeros(1, 2, 256, 64, dtype=torch.bfloat16)
plan = plan_like(spdsl.compile("{pattern}")._key, q, q, q, "sm_90").plan
compile_kernels(plan, "sm_90", ("forward", "intervals_q128", "intervals_q64"))
"""
    environment = os.environ | {"SPDSL_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=300)
    [found] = launch(tmp_path, 1, PATTERN=pattern)
    assert found["compiled"] == []
    assert "kernel" in found["kinds"]


def test_a_launch_runs_what_spdsl_compile_wrote(tmp_path: Path) -> None:
    """Forward and backward, from the folder itself; nothing is compiled and nothing copied."""
    words = ["compile", "causal", "-o", str(tmp_path / "out"), "--head-dim", "64", "--heads", "2"]
    environment = os.environ | {"SPDSL_CACHE_DIR": str(tmp_path / "builder")}
    command = [sys.executable, "-m", "spdsl.cli", *words]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=300, capture_output=True)
    [found] = launch(tmp_path / "runner", 1, "backward", SPDSL_CACHE_PATH=str(tmp_path / "out"))
    assert found["compiled"] == []
    assert set(found["kinds"]) == {"source"}


def test_candidates_are_compiled_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By processes that put them into this cache; one by one, each is timed once it is there."""
    import torch

    import spdsl
    from spdsl import choices, tuning
    from spdsl.analysis.plan import plan
    from spdsl.cache.store import store
    from spdsl.trials import Trial, tried

    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(tuning, "target_of", lambda backend, device: "sm_90")
    q = torch.zeros((), dtype=torch.bfloat16).expand(1, 2, 512, 64)
    base = plan(tuning.situation_of(spdsl.compile("causal")._key, q, q, q).problem(), "sm_90")
    plans = list(choices.variants("dq", base, "sm_90").items())[:3]
    waiting = [Trial(kind="dq", tiles=tiles, plan=made, predicted=None) for tiles, made in plans]
    there: list[int] = []
    told: list[str] = []

    def bench(made: object, kind: object) -> float:
        there.append(len([entry for entry in store().entries() if entry.name == "dq"]))
        return 1.0

    assert len(tried(waiting, [bench], "sm_90", lambda trial, seconds: None, tell=told.append)) == 3
    assert not any("Error" in text for text in told)
    assert all(count > number for number, count in enumerate(there))
    assert there[-1] == 3
    assert not store().verify()
    assert not (tmp_path / "triton").exists()
