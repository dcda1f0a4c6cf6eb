"""What `spdsl bench` does: make tensors, check some queries, time a pattern and dense attention in turns."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from spdsl import __version__
from spdsl.cli.measure import DTYPES, LIMITS, chooses, distance, name_of, time_of
from spdsl.cli.progress import Watch
from spdsl.cli.race_stages import Work, checked_sizes, errors_of_all, over_tokens, selection
from spdsl.cli.tensors import make_inputs, read_tensors
from spdsl.samples import Sizes

if TYPE_CHECKING:
    from spdsl.api import Attention, Pattern
    from spdsl.explain import Report

LOOKED_AT = 48
"""Queries in each of the places that are checked: the first, those in the middle, the last."""

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
Direction = Literal["fwd", "bwd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One measurement, as the command line asks for it."""

    pattern: Pattern
    parameters: Mapping[str, Any]
    sizes: Sizes
    value_dim: int
    dtype: str
    layer: int | None
    device: torch.device
    data: Path | None
    given: tuple[str, ...]
    backward: bool
    dense: bool
    rounds: int
    seed: int


def race(task: Race, watch: Watch | None = None) -> dict[str, Any]:
    """The report as JSON knows it; ``results`` has an object for each implementation and direction.

    Raises:
        SpatError: tensors, parameters or the pattern do not fit.
    """
    from spdsl.api import compile as compile_pattern

    drawn = _tensors(task)
    q, k, v, d_out, inputs, generated = drawn
    attention = compile_pattern(task.pattern, layer=task.layer, **task.parameters)
    check = _check(attention, task, drawn)
    work = _work(task, q, k, v, inputs)
    causal = _is_causal(attention, task)

    def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attention(q, k, v, **inputs)
        assert isinstance(out, Tensor)
        return out

    calls: dict[str, Call] = {"spdsl": sparse}
    select = None
    if chooses(task.pattern):
        select = selection(attention, q, k, v, inputs)
    if task.dense:
        calls["sdpa, causal" if causal else "sdpa"] = _dense(causal, task.sizes)
    times = _times(calls, (q, k, v), d_out, task, watch)
    rate = _matrix_rate(DTYPES[task.dtype], task.device)
    rows = [
        _row(task, work, impl, direction, median(seconds), rate, causal, check.errors)
        for (impl, direction), seconds in times.items()
    ]
    mine, *others = calls
    chosen = None if select is None else _digits(_seconds(select, task.device) * 1e3)
    return {
        "ok": check.ok(LIMITS[q.dtype]),
        "pattern": task.pattern.name,
        "parameters": dict(task.parameters),
        "kept": work.kept,
        "checked_at": check.length,
        "near_ties": {"rows": check.ties, "of": check.rows},
        "selection_ms": chosen,
        "matrix_rate": rate,
        "results": rows,
        "faster_than_dense": {
            direction: _digits(median(times[other, direction]) / median(times[mine, direction]))
            for other in others
            for impl, direction in times
            if impl == mine
        },
        "generated_inputs": list(generated),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Errors by direction against the reference, and with how many keys; nothing was compared where that is None.

    ``ties`` are the rows with near ties, of ``rows``: they have no part in the errors.
    """

    errors: Mapping[str, float]
    length: int | None
    ties: int = 0
    rows: int = 0

    def ok(self, limit: float) -> bool:
        """Whether an output has at most that error, and gradients twice as much."""
        return self.errors.get("fwd", 0.0) <= limit and self.errors.get("bwd", 0.0) <= 2 * limit


_Drawn: TypeAlias = "tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any], tuple[str, ...]]"


def _tensors(task: Race) -> _Drawn:
    """q, k, v, the gradient of the output, the inputs, and the names of those made up."""
    file = {} if task.data is None else read_tensors(task.data)
    made, generated = make_inputs(
        task.pattern, task.parameters, task.given, task.sizes, layer=task.layer, seed=task.seed, file=file
    )
    return *_drawn(task), {name: each.to(task.device) for name, each in made.items()}, generated


def _check(attention: Attention, task: Race, drawn: _Drawn) -> Check:
    """Compare a call with the reference: that of ``task``, whose tensors are ``drawn``, or one with fewer tokens."""
    if not chooses(task.pattern):
        q, k, v, d_out, inputs, _ = drawn
        return Check(errors=_errors(attention, (q, k, v), d_out, inputs, backward=task.backward), length=task.sizes.n)
    fitting = checked_sizes(task)
    if fitting is None:
        return Check(errors={}, length=None)
    q, k, v, d_out, inputs, _ = drawn if fitting is task else _tensors(fitting)
    errors, ties = errors_of_all(attention, (q, k, v), d_out, inputs, backward=task.backward)
    return Check(errors=errors, length=fitting.sizes.n, ties=int(ties.sum()), rows=ties.numel())


def _work(task: Race, q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Any]) -> Report | Work:
    """What is kept and computed."""
    from spdsl.explain import explain
    from spdsl.pipeline import key_of
    from spdsl.selecting import explain_stages

    key = key_of(task.pattern.checked, task.parameters, task.layer, None, False)
    if chooses(task.pattern):
        return Work(report=explain_stages(key, q, k, v, inputs))
    return explain(key, q, k, v, inputs)


def _drawn(task: Race) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random q, k and v, and the gradient of the output."""
    sizes, generator = task.sizes, torch.Generator().manual_seed(task.seed)

    def draw(heads: int, rows: int, dim: int) -> Tensor:
        drawn = torch.randn(sizes.batch, heads, rows, dim, generator=generator)
        return drawn.to(task.device, DTYPES[task.dtype])

    queries = draw(sizes.heads, sizes.nq, sizes.head_dim)
    keys, values = draw(sizes.groups, sizes.n, sizes.head_dim), draw(sizes.groups, sizes.n, task.value_dim)
    return queries, keys, values, draw(sizes.heads, sizes.nq, task.value_dim)


def _dense(causal: bool, sizes: Sizes) -> Call:
    """Torch's dense attention; with fewer queries than keys these are not the last ones, which takes the same time."""
    shared = sizes.groups != sizes.heads

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)

    return call


def _is_causal(attention: Attention, task: Race) -> bool:
    """Whether causal attention would keep all that the pattern keeps, at lengths for which torch has it."""
    from spdsl.costs import is_causal

    sizes = task.sizes
    softmaxes = over_tokens(attention.bind(sizes.heads, sizes.groups, sizes.head_dim))
    return sizes.nq == sizes.n and bool(softmaxes) and all(map(is_causal, softmaxes))


# ---------------------------------------------------------------- correctness


def _errors(
    attention: Attention, tensors: tuple[Tensor, ...], d_out: Tensor, inputs: Mapping[str, Any], *, backward: bool
) -> dict[str, float]:
    """Errors of the output and of the worst gradient, by direction, against the reference at some queries.

    The gradient that comes in is zero at all others, so that theirs need not be known.
    """
    from spdsl.api import raise_pending

    leaves = [each.detach().requires_grad_(backward) for each in tensors]
    exact = [each.detach().double().requires_grad_(backward) for each in tensors]
    out = attention(*leaves, **inputs)
    assert isinstance(out, Tensor)
    raise_pending()
    nq, n = out.shape[2], tensors[1].shape[2]
    grads, found, truth = [torch.zeros_like(each) for each in exact], [], []
    looked = torch.zeros_like(d_out)
    for start, stop in places(nq, attention.pattern):
        part = exact[0][:, :, start:stop]
        expected = attention.reference(part, exact[1], exact[2], q_start=n - nq + start, **inputs)
        assert isinstance(expected, Tensor)
        found.append(out.detach()[:, :, start:stop])
        truth.append(expected.detach())
        if backward:
            looked[:, :, start:stop] = d_out[:, :, start:stop]
            each_part = torch.autograd.grad(expected, exact, d_out[:, :, start:stop].double())
            grads = [total + each for total, each in zip(grads, each_part, strict=True)]
    errors = {"fwd": distance(torch.cat(found, 2), torch.cat(truth, 2))}
    if backward:
        gradients = torch.autograd.grad(out, leaves, looked)
        errors["bwd"] = max(distance(one, other) for one, other in zip(gradients, grads, strict=True))
    return errors


def places(nq: int, pattern: Pattern) -> list[tuple[int, int]]:
    """The queries that are looked at; all of them if the pattern reads how many there are."""
    from spdsl.cli.measure import reads_nq

    if nq <= 3 * LOOKED_AT or reads_nq(pattern):
        return [(0, nq)]
    middle = nq // 2
    return [(0, LOOKED_AT), (middle, middle + LOOKED_AT), (nq - LOOKED_AT, nq)]


# ---------------------------------------------------------------- times


def _times(
    calls: Mapping[str, Call], tensors: tuple[Tensor, ...], d_out: Tensor, task: Race, watch: Watch | None
) -> dict[tuple[str, Direction], list[float]]:
    """Seconds of each round by implementation and direction, in turns."""
    times: dict[tuple[str, Direction], list[float]] = defaultdict(list)
    q, k, v = tensors
    leaves = [each.detach().requires_grad_() for each in tensors]
    for turn in range(task.rounds):
        for number, (name, call) in enumerate(calls.items()):
            if watch is not None:
                watch(f"{name}, round {turn + 1}", turn * len(calls) + number, task.rounds * len(calls))
            if not turn:
                call(q, k, v)  # compiles
            times[name, "fwd"].append(_seconds(partial(call, q, k, v), task.device))
            if task.backward:
                out = call(*leaves)

                def back(out: Tensor = out) -> object:
                    return torch.autograd.grad(out, leaves, d_out, retain_graph=True)

                if not turn:
                    back()
                times[name, "bwd"].append(_seconds(back, task.device))
    return dict(sorted(times.items(), key=lambda each: each[0][1] == "bwd"))


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """The median time of an action that has run before; on a GPU between events of the device."""
    if device.type != "cuda":
        return time_of(action, device)
    from triton.testing import do_bench

    from spdsl.runtime.plain import on

    with on(device):  # events are those of the current device
        return float(do_bench(action, warmup=20, rep=100, return_mode="median")) * 1e-3


def _matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix product on random data."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b), device)


def _row(
    task: Race,
    work: Report | Work,
    impl: str,
    direction: Direction,
    seconds: float,
    rate: float,
    causal: bool,
    errors: Mapping[str, float],
) -> dict[str, Any]:
    """One figure, in the fields of the benchmark's results."""
    sizes, d, dv = task.sizes, task.sizes.head_dim, task.value_dim
    operations = work.pairs * (2 * (d + dv) if direction == "fwd" else 2 * (3 * d + 2 * dv))
    computed = (sizes.n + 1) / (2 * sizes.n) if causal else 1.0
    ours = impl == "spdsl"
    return {
        "case": task.pattern.name,
        "impl": impl,
        "direction": direction,
        "ms": _digits(seconds * 1e3),
        "tflops_useful": _digits(operations / seconds * 1e-12),
        "floor_ms": _digits(operations / rate * 1e3),
        "useful_over_computed": round(work.useful(direction) if ours else work.kept / computed, 4),
        "error": errors.get(direction) if ours else None,
        "gpu": name_of(task.device),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "spdsl": __version__,
        "date": dt.date.today().isoformat(),
        "shape": f"batch {sizes.batch}, heads {sizes.heads}:{sizes.groups}, n {sizes.n}, d {d}"
        + (f", nq {sizes.nq}" if sizes.nq != sizes.n else "")
        + (f", dv {dv}" if dv != d else ""),
        "keys": sizes.n,
        "dtype": str(DTYPES[task.dtype]).removeprefix("torch."),
    }


def _digits(value: float) -> float:
    """The value with as many digits as are known of it."""
    return float(f"{value:.5g}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
