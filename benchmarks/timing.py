"""Seconds that kernels take on the device: captured in CUDA graphs, so that no time of the host counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import spdsl
from benchmarks.subjects import Subject
from spdsl.analysis.plans import Kind
from spdsl.runtime.calls import Call
from spdsl.runtime.lists import lists_for
from spdsl.runtime.recorder import Recorder
from spdsl.runtime.triton_engine import TritonEngine

WANTED = {"dq": frozenset("q"), "dkdv": frozenset("kv"), "fused": frozenset("qkv")}


def timed(run: Callable[[], object], long: float = 5e-3, replays: int = 5) -> float:
    """Seconds of a run on the device: the median of some replays of a graph that holds several.

    The device is kept busy while replays are asked for, so that none waits for the host.  Runs that take longer than
    ``long`` seconds, host and all, are alone in their graph.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        once = time.perf_counter() - start
        repeats, replays = (1, min(replays, 3)) if once > long else (4, replays)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(repeats):
                run()
        graph.replay()
        torch.cuda._sleep(_BUSY)  # noqa: SLF001  # there is no other way to keep a device busy
        events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
    torch.cuda.current_stream().wait_stream(side)
    return median(a.elapsed_time(b) for a, b in pairwise(events)) * 1e-3 / repeats


_BUSY = 400_000
"""Turns of the clock, some 0.2 ms: as long as the host takes to ask for all replays."""


def started(call: Call, kind: Kind) -> Callable[[], object]:
    """A run of one kernel of a call, with the one before a backward pass."""
    engine = TritonEngine()
    if kind == "forward":
        ready = lists_for(call, ("forward",))
        return lambda: engine.forward(replace(ready, recorder=Recorder()))
    ready = replace(lists_for(call, ("fused",) if kind == "fused" else ("dq", "dkdv")), deterministic=kind != "fused")
    out, d_out = torch.randn_like(call.q), torch.randn_like(call.q)
    lse = torch.full(call.q.shape[:3], 8.0, device=call.q.device)
    return lambda: engine.backward(replace(ready, recorder=Recorder()), out, lse, d_out, None, WANTED[kind])


def seconds_of(call: Call, kind: Kind) -> float:
    """Seconds of one kernel of a call."""
    return timed(started(call, kind))


def both(run: Callable[..., Any], leaves: list[Tensor]) -> tuple[float, float]:
    """Seconds of a forward pass and of the backward pass after it."""
    leaves = [each.detach().requires_grad_() for each in leaves]
    grad = torch.ones_like(leaves[0])

    def there_and_back() -> object:
        return torch.autograd.grad(run(*leaves), leaves, grad)

    with torch.no_grad():
        forward = timed(lambda: run(*leaves), replays=3)
    return forward, max(timed(there_and_back, replays=3) - forward, 0.0)


def union_times(
    attention: spdsl.Attention, q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Seconds of the forward and backward kernels of a pattern of several parts."""
    return both(lambda *leaves: attention(*leaves, **inputs), [q, k, v])


_known: dict[object, tuple[float, float]] = {}


def dense_times(subject: Subject, *, causal: bool) -> dict[str, Any]:
    """Seconds of cuDNN's attention at a subject's shape, with a causal mask or none; each shape is timed once."""
    place = (subject.shape, causal)
    if place not in _known:
        _known[place] = both(*_dense(subject, causal))
    forward, backward = _known[place]
    against = "causal" if causal else "full"
    return {"subject": subject.name, "dense": against, "forward": forward, "backward": backward}


def dense_run(subject: Subject, *, causal: bool) -> Callable[[], object]:
    """A run of cuDNN's attention at a subject's shape, forward and backward."""
    run, given = _dense(subject, causal)
    leaves = [each.requires_grad_() for each in given]
    return lambda: torch.autograd.grad(run(*leaves), leaves, torch.ones_like(leaves[0]))


def _dense(subject: Subject, causal: bool) -> tuple[Callable[..., Tensor], list[Tensor]]:
    groups = subject.groups or subject.heads
    shapes = [(subject.batch, heads, subject.n, subject.dim) for heads in (subject.heads, groups, groups)]

    def run(*given: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(
                *given, is_causal=causal, enable_gqa=groups != subject.heads
            )

    return run, [torch.randn(shape, device="cuda", dtype=subject.dtype) for shape in shapes]


def machine() -> dict[str, Any]:
    """Rates of the machine: matrix products, copies, and the start of a kernel inside a graph."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    y, one = torch.empty_like(x), torch.zeros(1, device="cuda")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "matrix_rate": 2 * 8192**3 / timed(lambda: a @ b),
        "copy_rate": 2 * x.numel() / timed(lambda: y.copy_(x)),
        "launch": timed(lambda: [one.add_(1) for _ in range(100)]) / 100,
    }
