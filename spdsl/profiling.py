"""The profile of this machine's GPU, measured in seconds: its rates, and how its kernels compare with those known.

From a device to a `DeviceProfile`, which is kept.  The costs of all choices of tiles are those of the nearest known
GPU, multiplied by one factor: the median of measured over predicted times of some kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from spdsl.analysis.cost import estimate
from spdsl.analysis.device import DeviceProfile, profile_for
from spdsl.analysis.plan import plan
from spdsl.cache.store import store
from spdsl.choices import call_of
from spdsl.costs import work
from spdsl.diagnostics import error
from spdsl.library import text_of
from spdsl.pipeline import key_of, read
from spdsl.runtime.calls import Call
from spdsl.runtime.recorder import Recorder
from spdsl.tuning import situation_of

PROBES: tuple[tuple[str, dict[str, bool | int | float | tuple[bool | int | float, ...]]], ...] = (
    ("causal", {}),
    ("sliding_window", {"window": 1024}),
    ("sliding_window", {"window": 256}),
)
"""Patterns whose forward kernels are timed."""

LENGTH, HEADS, DIM = 16384, 16, 128


def measure_device(device: torch.device) -> DeviceProfile:
    """The measured profile of ``device``, kept for predictions from now on.

    Raises:
        SpatError: it is no GPU (SP521), or one of a kind of which nothing is known (SP520).
    """
    if device.type != "cuda":
        raise error("SP521", "there is no GPU to measure on", help="profiles of known GPUs are derived or shipped")
    from spdsl.runtime.plain import on

    properties = torch.cuda.get_device_properties(device)
    major, minor = torch.cuda.get_device_capability(device)
    target = str(properties.gcnArchName).split(":")[0] if torch.version.hip else f"sm_{major}{minor}"
    base = profile_for(properties.name, target)
    with on(device):  # events and graphs are those of the current device
        ratios = [_ratio(name, dict(parameters), base, device) for name, parameters in PROBES]
        matrix_rate, copy_rate, launch = _matrix_rate(device), _copy_rate(device), _launch(device)
    found = replace(
        base.scaled(median(ratios)),
        name=properties.name,
        target=target,
        multiprocessors=properties.multi_processor_count,
        matrix_rate=matrix_rate,
        copy_rate=copy_rate,
        launch=launch,
        origin="measured",
        dense=base.dense,
        about=f"costs of {base.name} by the median ratio of {len(ratios)} forward kernels, {time.strftime('%Y-%m-%d')}",
    )
    store().results.put("device", properties.name, found.as_dict())
    return found


def _ratio(
    name: str,
    parameters: dict[str, bool | int | float | tuple[bool | int | float, ...]],
    base: DeviceProfile,
    device: torch.device,
) -> float:
    """Measured over predicted time of a forward kernel."""
    from spdsl.runtime.triton_engine import TritonEngine

    key = key_of(read(text_of(name), name=name), parameters, None, None, False)
    q, k, v = (torch.randn(1, HEADS, LENGTH, DIM, device=device, dtype=torch.bfloat16) for _ in range(3))
    situation = situation_of(key, q, k, v)
    made = plan(situation.problem(), situation.target)
    like = call_of(situation, made)
    call = Call(plan=made, q=q, k=k, v=v, parameters=like.parameters)
    predicted = estimate(work(like, made.forward), base).seconds
    return _seconds(lambda: TritonEngine().forward(replace(call, recorder=Recorder()))) / predicted


def _matrix_rate(device: torch.device) -> float:
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / _seconds(lambda: a @ b)


def _copy_rate(device: torch.device) -> float:
    x = torch.empty(1 << 29, device=device, dtype=torch.uint8)
    y = torch.empty_like(x)
    return 2 * x.numel() / _seconds(lambda: y.copy_(x))


def _launch(device: torch.device) -> float:
    """Seconds of the smallest kernel among others in a graph, so that no time of the host counts."""
    one = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    one.add_(1)
    with torch.cuda.graph(graph):
        for _ in range(100):
            one.add_(1)
    return _seconds(graph.replay) / 100


def _seconds(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=40, return_mode="median")) * 1e-3
