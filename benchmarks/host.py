"""The time that the host takes for a call: ``python -m benchmarks.host``, or ``--stub`` where there is no GPU.

Microseconds until a call returns: forward alone, forward that is recorded for gradients, and backward, of calls so
small that kernels take no time to speak of; the median of many.  Under ``--stub`` kernels are compiled for Hopper and
everything on the way to the driver runs, on tensors of the CPU; the driver's own part and the work on numbers are left
out.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import spdsl
from spdsl.semantics.nodes import Table

CALLS = 1000
TOKENS = 256
DIRECTIONS = ("forward", "recorded", "backward")


def main() -> None:
    """Measure the patterns named on the command line, or two, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("patterns", nargs="*", default=["sliding_window", "documents"])
    parser.add_argument("--stub", action="store_true", help="without a GPU: compile for Hopper, launch nothing")
    parser.add_argument("--profile", choices=DIRECTIONS, help="also print where the time of these calls goes")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    given = parser.parse_args()
    results = {}
    for name in given.patterns:
        with stubbed() if given.stub else nullcontext():
            runs = calls_of(name, torch.device("cpu" if given.stub else "cuda"))
            results[name] = {direction: round(host_time(run), 1) for direction, run in runs.items()}
            print(f"{name:20}", *(f"{direction} {us:8.1f} us" for direction, us in results[name].items()))
            if given.profile:
                profile(runs[given.profile])
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


def calls_of(name: str, device: torch.device) -> dict[str, Callable[[], object]]:
    """Calls of a library pattern by what they do."""
    attention = spdsl.compile(name, backend="triton")
    leaves = [torch.randn(1, 2, TOKENS, 128, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    plain = [each.detach() for each in leaves]
    inputs = {table.name: _table(table, device) for table in attention.pattern.checked.tables}
    out = attention(*leaves, **inputs)
    assert isinstance(out, Tensor)
    d_out = torch.randn_like(out)
    return {
        "forward": lambda: attention(*plain, **inputs),
        "recorded": lambda: attention(*leaves, **inputs),
        "backward": lambda: torch.autograd.grad(out, leaves, d_out, retain_graph=True),
    }


def _table(table: Table, device: torch.device) -> Tensor:
    """An input of one number for each token; a bool one marks the first, an int one numbers documents."""
    tokens = torch.arange(TOKENS, device=device, dtype=torch.int32)
    return tokens < 1 if table.dtype == "bool" else (tokens // 100).to(_TYPES[table.dtype])


_TYPES = {"int": torch.int32, "float": torch.float32}


def host_time(run: Callable[[], object]) -> float:
    """Microseconds until a call returns, each on an idle device; the median."""
    times = []
    for number in range(CALLS + 20):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if number >= 20:
            times.append((time.perf_counter() - start) * 1e6)
    return median(times)


def profile(run: Callable[[], object]) -> None:
    """Print the functions that take the most time of their own."""
    found = cProfile.Profile()
    with torch.autograd.set_multithreading_enabled(False):
        found.enable()
        for _ in range(CALLS):
            run()
        found.disable()
    pstats.Stats(found).sort_stats("tottime").print_stats(45)


# ---------------------------------------------------------------- without a GPU


@contextmanager
def stubbed() -> Iterator[None]:
    """While this lasts, kernels are compiled for Hopper, and launches end where the driver would begin."""
    from triton.runtime import driver

    from spdsl import prepare
    from spdsl.runtime import recent
    from spdsl.runtime.calls import Call

    def fuses(call: Call, wanted: frozenset[str]) -> bool:
        return call.plan.fused is not None and {"q", "k", "v"} <= wanted

    import_module("spdsl.reference")  # before operations of torch are replaced
    with (
        mock.patch.object(driver, "_active", _Driver()),
        mock.patch.object(prepare, "choose_backend", return_value="triton"),
        mock.patch.object(Call, "fuses", fuses),
        mock.patch.object(recent, "counts", return_value=True),
        mock.patch.object(torch, "mul", lambda sums, scale, out: out),
        mock.patch.object(torch, "zeros", torch.empty),
    ):
        yield


class _Driver:
    """What Triton asks of a driver, for a Hopper GPU that is not there."""

    def __init__(self) -> None:
        self.utils = _Utils()
        self.launcher_cls = _Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def load_binary(self, *_: object) -> tuple[object, int, int, int, int]:
        return object(), 1, 0, 0, 1024

    def fill_tma_descriptor(self, *_: object) -> object:
        return object()


class _Launcher:
    """Triton's launcher up to the call of its C function, whose place ``launch_in_c`` takes."""

    launch_in_c: Callable[..., None] = staticmethod(lambda *_: None)

    def __init__(self, source: Any, metadata: Any) -> None:
        from triton.backends.nvidia.driver import wrap_handle_tensordesc

        described = getattr(metadata, "tensordesc_meta", None)
        self.launch = wrap_handle_tensordesc(self.launch_in_c, dict(source.signature), described)
        self.launch_cooperative_grid = self.launch_pdl = False
        self.global_scratch_size = self.profile_scratch_size = 0

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: object) -> None:
        self.launch(x, y, z, stream, function, 0, 0, None, None, *rest)


if __name__ == "__main__":
    main()
