"""How time, memory and host time of windowed masks grow with the length: ``python -m benchmarks.scaling --out f.json``.

Forward and backward of spdsl alone, 8 heads of 128 dims in bf16, from 4,096 to 1,048,576 tokens.  Memory is what a call
allocates beside its result at its peak; host time is that of calls whose kernels are not waited for.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import triton
from torch import Tensor

import spdsl

LENGTHS = tuple(4096 << (2 * step) for step in range(5))

COMPOSED = """
pattern composed(window: int in 1.. = 1024, sinks: int in 0.. = 64, stride: int in 1.. = 4096) {
  input doc: int[token] sorted
  keep causal and doc[q] == doc[k] and (q - k < window or k < sinks or (q - k) % stride == 0)
}
"""

Result = dict[str, object]


def main() -> None:
    """Measure all patterns at all lengths and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("scaling.json"), help="the JSON file to write")
    out = parser.parse_args().out
    window = spdsl.compile("sliding_window", window=1024)
    sinks = spdsl.compile("streaming", window=1024, sinks=64)
    composed = spdsl.compile(spdsl.loads(COMPOSED))
    results: list[Result] = []
    for name, attention, documents in (
        ("window", window, False),
        ("sinks_window", sinks, False),
        ("composed", composed, True),
    ):
        for n in LENGTHS:
            results += _measured(name, attention, n, documents)
            out.write_text(json.dumps(results, indent=1) + "\n")


def _measured(name: str, attention: spdsl.Attention, n: int, documents: bool) -> list[Result]:
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    leaves = [torch.randn(1, 8, n, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    inputs: dict[str, Tensor] = {"doc": torch.arange(n, device="cuda") // 10_000} if documents else {}
    d_out = torch.randn_like(leaves[0])
    plain = [each.detach() for each in leaves]

    def forward() -> object:
        return attention(*plain, **inputs)

    out = attention(*leaves, **inputs)
    assert isinstance(out, Tensor)

    def backward() -> object:
        return torch.autograd.grad(out, leaves, d_out, retain_graph=True)

    found = []
    for direction, run, held in (("fwd", forward, out.nbytes), ("bwd", backward, 3 * out.nbytes)):
        run()
        result: Result = {
            "case": name,
            "direction": direction,
            "n": n,
            "ms": round(float(triton.testing.do_bench(run, warmup=10, rep=60, return_mode="median")), 4),
            "host_ms": round(_host_time(run), 4),
            "extra_bytes": _peak(run) - held,
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "spdsl": spdsl.__version__,
            "date": dt.date.today().isoformat(),
            "shape": f"batch 1, heads 8:8, n {n}, d 128",
            "dtype": "bfloat16",
        }
        found.append(result)
        shown = f"{result['ms']:9} ms  host {result['host_ms']} ms  {result['extra_bytes']:,} B"
        print(f"{name:14} {direction} {n:9,} {shown}", flush=True)
    return found


def _host_time(run: Callable[[], object]) -> float:
    """Milliseconds until a call returns, its kernels still running; the median of 20 calls, each on an idle device."""
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return median(times)


def _peak(run: Callable[[], object]) -> int:
    """The most bytes that a call holds."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
