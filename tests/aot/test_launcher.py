"""The module that starts a kernel is built while the kernel is compiled, from what is known before."""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.backends.nvidia.driver import make_launcher

import spdsl
from spdsl.codegen import aot, binaries
from spdsl.codegen.aot import compile_kernels
from spdsl.kernels import plan_like


def compiled(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> list[Any]:
    """Kernels of `streaming` for Hopper, as Triton hands them out."""
    found = []

    def noted(*arguments: Any, **options: Any) -> Any:
        found.append(binaries.compile_kept(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(aot, "compile_kept", noted)
    q = torch.zeros((), dtype=torch.bfloat16).expand(1, 2, 512, 64)
    plan = plan_like(spdsl.compile("streaming")._key, q, q, q, "sm_90").plan
    compile_kernels(plan, "sm_90", names)
    return found


def test_its_text_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = compiled(monkeypatch, ("forward", "dq", "delta"))
    described = 0
    for kernel in kernels:
        signature = dict(kernel.src.signature)
        foreseen = binaries.Foreseen.of(kernel.src)
        actual = kernel.metadata.tensordesc_meta
        assert make_launcher({}, signature, foreseen.tensordesc_meta) == make_launcher({}, signature, actual)
        described += len(actual or ())
    assert len(kernels) == 3
    assert described > 3
    assert make_launcher({}, signature, None) == make_launcher({}, signature, ())  # of a kernel without descriptors


class Sources(SimpleNamespace):
    """What Triton hands to its compiler, as far as the cache looks at it."""

    def hash(self) -> str:
        return str(self.digest)

    def parse_options(self) -> dict[str, object]:
        return {}

    def make_ir(self, inside: list[int]) -> None:
        """Notes how many threads are here."""
        inside[0] += 1
        inside[1] = max(inside)
        time.sleep(0.01)
        inside[0] -= 1


@pytest.mark.parametrize("fails", [False, True])
def test_both_are_made_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool) -> None:
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    begun = threading.Event()

    def launcher(source: Any, known: Any) -> None:
        assert known.tensordesc_meta == ({},)
        assert known.global_scratch_size == 0
        begun.set()
        if fails:
            raise OSError("there is no C compiler")

    def compiler(source: Any, **options: Any) -> Any:
        assert begun.wait(20), "the launcher waits for the kernel"
        return SimpleNamespace(metadata_group={})

    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", SimpleNamespace(launcher_cls=launcher))
    source = Sources(
        signature={0: "*fp32", 1: "tensordesc<bf16[64]>", 2: "i32"}, name="beside", digest=f"beside {fails}"
    )
    made = binaries.KeptCompiler(compiler=compiler, launches=True)(source, target=GPUTarget("cuda", 90, 32))
    assert made.metadata_group == {}


def test_threads_that_compile_parse_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In Python 3.11 `ast.parse` fails now and then where threads are in it at once."""
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget

    inside, compiling = [0, 0], threading.Barrier(4)

    def compiler(source: Any, **options: Any) -> Any:
        compiling.wait(20)
        source.make_ir(inside)
        return SimpleNamespace(metadata_group={})

    def compile(number: int) -> Any:
        source = Sources(signature={}, name="alone", digest=f"alone {number}")
        binaries.KeptCompiler(compiler=compiler)(source, target=GPUTarget("cuda", 90, 32))
        return source.__dict__

    with ThreadPoolExecutor(4) as pool:
        assert all("make_ir" not in left for left in pool.map(compile, range(4)))
    assert inside == [0, 1]


def test_threads_of_a_compilation_share_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where both want it for the first time at once: the folder of either would go with its last mention."""
    made = tempfile.TemporaryDirectory

    def slowly(*given: Any, **named: Any) -> Any:
        time.sleep(0.05)
        return made(*given, **named)

    monkeypatch.setattr(binaries.tempfile, "TemporaryDirectory", slowly)
    scratch = binaries._Scratch()
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: scratch.folder, range(4)))
    assert len(folders) == 1
    assert folders.pop().is_dir()
    scratch.remove()
