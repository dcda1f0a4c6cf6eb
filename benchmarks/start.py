"""How long a process takes to its first result: ``python -m benchmarks.start --out start.json``.

Every run is a process of its own: the first begins with an empty cache, the others with what it left.  Seconds by
phases, from the end of `import torch` and the start of CUDA on: importing spdsl, reading and checking a pattern, the
first forward call, a second one, and the first backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PATTERNS = ("streaming", "documents")
MODES = ("cold", "warm", "warm again")


def main() -> None:
    """Run cold and warm processes and print their phases."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("patterns", nargs="*", default=PATTERNS)
    parser.add_argument("--runs", type=int, default=3, help="processes, the first of them with an empty cache")
    parser.add_argument("--forward", action="store_true", help="without gradients")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--profile", type=Path, help="also write what the profiler saw of every process, into a folder")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(_phases(given.patterns[0], given.profile, gradients=not given.forward)))
        return
    results: dict[str, Any] = {}
    for pattern in given.patterns:
        with tempfile.TemporaryDirectory() as folder:
            for mode in MODES[: given.runs]:
                words = [pattern, "--child", *(["--forward"] if given.forward else [])]
                found = _child(words, mode, Path(folder), given.profile)
                results[f"{pattern}, {mode}"] = found
                print(f"{pattern}, {mode}:", *(f"{name} {seconds:.2f}" for name, seconds in found.items()), flush=True)
                if given.out:
                    given.out.write_text(json.dumps(results, indent=1) + "\n")


def _child(given: list[str], mode: str, cache: Path, profile: Path | None) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.start", *given]
    if profile is not None:
        profile.mkdir(parents=True, exist_ok=True)
        words += ["--profile", str(profile / f"{given[0]}-{mode.replace(' ', '-')}.txt")]
    settings = {"SPDSL_CACHE_DIR": str(cache / "spdsl"), "TRITON_CACHE_DIR": str(cache / "triton")}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | settings)  # noqa: S603
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _phases(pattern: str, profile: Path | None, *, gradients: bool) -> dict[str, float]:
    """Seconds of every phase in this process."""
    phases: dict[str, float] = {}
    last = time.perf_counter()

    def phase(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        phases[name] = round(now - last, 4)
        last = now

    import torch

    phase("import torch")
    leaves = [torch.randn(1, 16, 8192, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    inputs = {"doc": torch.arange(8192, device="cuda", dtype=torch.int32) // 1000} if pattern == "documents" else {}
    (leaves[0] @ leaves[1].mT)[0, 0, 0, 0].item()
    phase("start CUDA")
    watch = None
    if profile is not None:
        import cProfile

        watch = cProfile.Profile()
        watch.enable()
    begin = last = time.perf_counter()
    import spdsl

    phase("import")
    attention = spdsl.compile(spdsl.load(pattern))
    phase("read")
    attention(*leaves, **inputs)
    torch.cuda.synchronize()
    phase("forward")
    phases["to the first result"] = round(last - begin, 4)
    if watch is not None and profile is not None:
        watch.disable()
        _write(watch, profile)
        last = time.perf_counter()
    attention(*leaves, **inputs)
    torch.cuda.synchronize()
    phase("forward again")
    if not gradients:
        return phases
    leaves = [each.requires_grad_() for each in leaves]
    out = attention(*leaves, **inputs)
    assert isinstance(out, torch.Tensor)
    torch.autograd.grad(out, leaves, torch.ones_like(out))
    torch.cuda.synchronize()
    phase("with gradients")
    torch.autograd.grad(attention(*leaves, **inputs), leaves, torch.ones_like(out))
    torch.cuda.synchronize()
    phase("with gradients again")
    return phases


def _write(watch: Any, path: Path) -> None:
    import pstats

    with path.open("w") as file:
        stats = pstats.Stats(watch, stream=file)
        stats.sort_stats("cumulative").print_stats(120)
        stats.sort_stats("tottime").print_stats(60)


if __name__ == "__main__":
    main()
