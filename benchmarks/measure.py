"""Checking and timing one case: every implementation on the same tensors, in one process, interleaved."""

from __future__ import annotations

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
import triton
from torch import Tensor
from torch._functorch import config as functorch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import spdsl
from benchmarks.cases import Case, MaskMod
from benchmarks.coverage import Coverage, coverage
from spdsl.prepare import target_of

functorch.donated_buffer = False  # the backward of a compiled peer is timed by running it again

ROUNDS = 3
SAMPLED = 128
"""Queries, and keys, whose results are compared with float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure of a results file; times in milliseconds, rates in 10^12 useful operations a second.

    ``useful_over_computed`` is the share of kept pairs among those that the kernels compute; None where it is not
    known.
    """

    case: str
    impl: str
    direction: str
    ms: float
    tflops_useful: float
    floor_ms: float
    useful_over_computed: float | None
    error: float
    gpu: str
    torch: str
    triton: str
    spdsl: str
    date: str
    shape: str
    dtype: str


Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def prepare(case: Case, peers: bool = True) -> None:
    """Compile what `measure` runs, for every implementation."""
    leaves, d_out = _tensors(case)
    for run in _runs(case, case.mask_mod(leaves[0].device), peers).values():
        torch.autograd.grad(run(*leaves), leaves, d_out)


def measure(case: Case, rate: float, peers: bool = True) -> list[Measurement]:
    """Check and time ``case``; ``rate`` is the machine's measured matrix rate in operations a second."""
    torch.compiler.reset()  # or FlexAttention gives up compiling after eight masks
    torch.cuda.empty_cache()
    leaves, d_out = _tensors(case)
    device = leaves[0].device
    mod = case.mask_mod(device)
    found = coverage(case, target_of("triton", device))
    pairs = count_pairs(mod, case, device)
    assert pairs == found.kept * (1 if case.per_head else case.heads), "the plan counts other pairs than the mask"
    runs = _runs(case, mod, peers)
    errors: dict[str, tuple[float, float]] = {}
    for name, run in list(runs.items()):
        checked = _checked(name, lambda run=run: _errors(case, mod, leaves, d_out, run))
        if checked is None:
            del runs[name]
        else:
            errors[name] = checked
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            plain = [each.detach() for each in leaves]
            times[name, "fwd"].append(_time(lambda run=run, plain=plain: run(*plain)))
            out = run(*leaves)
            times[name, "bwd"].append(_time(lambda out=out: torch.autograd.grad(out, leaves, d_out, retain_graph=True)))
            del out
    factors = {"fwd": 4, "bwd": 10}
    return [
        _measurement(
            case,
            name,
            direction,
            median(times[name, direction]),
            factor * case.dim * pairs,
            rate,
            share(found, name, direction),
            errors[name][direction == "bwd"],
        )
        for direction, factor in factors.items()
        for name in runs
    ]


def share(found: Coverage, impl: str, direction: str) -> float | None:
    """Kept pairs among those that an implementation computes, where that is known."""
    if impl.startswith("flex"):
        return round(found.kept / found.blocks, 4)
    return round(found.useful[direction], 4) if impl == "spdsl" else None


def _tensors(case: Case) -> tuple[list[Tensor], Tensor]:
    """Random ``q``, ``k`` and ``v``, and the gradient of the output."""
    torch.manual_seed(0)
    shapes = [(case.batch, heads, case.n, case.dim) for heads in (case.heads, case.groups, case.groups)]
    leaves = [torch.randn(shape, device="cuda", dtype=case.dtype, requires_grad=True) for shape in shapes]
    return leaves, torch.randn_like(leaves[0])


def _runs(case: Case, mod: MaskMod, peers: bool) -> dict[str, Forward]:
    """The implementations by name."""
    device = torch.device("cuda")
    runs = {"spdsl": _spdsl(case, device)}
    if peers:
        runs["flex"] = _flex(case, mod, device)
    if peers and case.tuned:
        runs["flex-tuned"] = _flex(case, mod, device, mode="max-autotune-no-cudagraphs")
    if peers and (case.causal or case.dense):
        runs["cudnn"] = partial(_cudnn, causal=case.causal)
    return runs


def _checked(name: str, run: Callable[[], tuple[float, float]]) -> tuple[float, float] | None:
    """The errors of an implementation; None for a peer that refuses the case, which is reported and not measured."""
    try:
        return run()
    except Exception as problem:
        if name == "spdsl":
            raise
        print(f"{name} refused: {str(problem).splitlines()[0][:120]}")
        return None


def count_pairs(mod: MaskMod, case: Case, device: torch.device) -> int:
    """The pairs that a mask keeps over batch and heads, counted one by one; once where heads do not differ."""
    b = torch.zeros((), dtype=torch.int64, device=device)
    keys = torch.arange(case.n, device=device)[None, :]
    total = torch.zeros((), dtype=torch.int64, device=device)
    heads = case.heads if case.per_head else 1
    for head in range(heads):
        h = torch.full((), head, device=device)
        for start in range(0, case.n, 1024):
            rows = torch.arange(start, min(start + 1024, case.n), device=device)[:, None]
            total += mod(b, h, rows, keys).expand(rows.shape[0], case.n).sum()
    return int(total) * case.batch * case.heads // heads


def matrix_rate() -> float:
    """Operations a second of a bf16 matrix product of 8192³ on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / (median(_time(lambda: a @ b) for _ in range(ROUNDS)) * 1e-3)


def _spdsl(case: Case, device: torch.device) -> Forward:
    pattern = spdsl.loads(case.pattern) if "{" in case.pattern else spdsl.load(case.pattern)
    attention = spdsl.compile(pattern, **case.parameters)
    inputs = case.inputs(device)
    return lambda q, k, v: attention(q, k, v, **inputs)  # type: ignore[return-value]


def _flex(case: Case, mod: MaskMod, device: torch.device, mode: str | None = None) -> Forward:
    compiled = torch.compile(flex_attention, mode=mode)
    block_mask = torch.compile(create_block_mask)(
        mod, None, case.heads if case.per_head else None, case.n, case.n, device=device
    )
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask, enable_gqa=case.groups != case.heads)


def _cudnn(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        )


def _time(run: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median"))


def _errors(case: Case, mod: MaskMod, leaves: list[Tensor], d_out: Tensor, run: Forward) -> tuple[float, float]:
    """Relative errors of the output and of the worst gradient against float64: at some queries of the last head, and
    at some keys of the last group.  Memory that is taken anew holds NaN before."""
    _poison(leaves)
    out = run(*leaves)
    _poison(leaves)
    d_q, d_k, d_v = torch.autograd.grad(out, leaves, d_out)
    at = _sample(case.n, leaves[0].device)
    heads = range(case.heads - case.heads // case.groups, case.heads)
    q, d = (each.detach()[-1, heads.start :].double() for each in (leaves[0], d_out))
    k, v = (each.detach()[-1, -1].double() for each in leaves[1:])
    expected = expected_at(at, at, q, k, v, d, lambda head, rows, keys: _kept(mod, case, heads[head], rows, keys))
    actual = (out[-1, -1, at], d_q[-1, -1, at], d_k[-1, -1, at], d_v[-1, -1, at])
    worst = [
        float(((a.detach().double() - e).norm() / e.norm()).nan_to_num(math.inf))
        for a, e in zip(actual, expected, strict=True)
    ]
    return worst[0], max(worst[1:])


def _poison(leaves: list[Tensor]) -> None:
    """Leave NaN in memory of the sizes that results have, which is taken again next."""
    held = [torch.full_like(each, math.nan, dtype=dtype) for each in leaves for dtype in (each.dtype, torch.float32)]
    held.append(torch.full(leaves[0].shape[:3], math.nan, device=leaves[0].device))
    del held


def _sample(n: int, device: torch.device) -> Tensor:
    """Positions drawn at random, in order, with the first and the last."""
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(1))[: min(n, SAMPLED)]
    return torch.cat([drawn, torch.tensor([0, n - 1])]).unique().to(device)


def _kept(mod: MaskMod, case: Case, head: int, rows: Tensor, keys: Tensor) -> Tensor:
    b, h = (torch.full((), each, device=rows.device) for each in (case.batch - 1, head))
    return mod(b, h, rows[:, None], keys[None, :]).expand(len(rows), len(keys))


def expected_at(
    queries: Tensor,
    keys: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
    kept: Callable[[int, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and dQ at ``queries`` of the last head, dK and dV at ``keys``, of the heads ``[heads, n, d]`` of one
    group.

    Only rows are computed that are asked for or keep one of the keys; ``kept`` says which pairs of a head are.
    """
    n, scale = k.shape[0], 1 / math.sqrt(q.shape[-1])
    everywhere = torch.arange(n, device=q.device)
    d_k, d_v = torch.zeros_like(k[keys]), torch.zeros_like(v[keys])
    out, d_q = torch.zeros_like(v[queries]), torch.zeros_like(q[0, queries])
    for head in range(len(q)):
        last = head == len(q) - 1
        asked = torch.zeros(n, dtype=torch.bool, device=q.device)
        asked[queries] = last
        for rows in everywhere.split(4096):
            asked[rows] |= kept(head, rows, keys).any(-1)
        for rows in everywhere[asked].split(1024):
            keep = kept(head, rows, everywhere)
            logits = (q[head, rows] @ k.T * scale).masked_fill(~keep, -math.inf)
            p = torch.nan_to_num(torch.softmax(logits, dim=-1))
            o, g = p @ v, d_out[head, rows]
            delta = (g * o).sum(-1, keepdim=True)
            d_v += p[:, keys].T @ g
            d_k += (p[:, keys] * (g @ v[keys].T - delta) * scale).T @ q[head, rows]
            if last:
                here = torch.isin(rows, queries)
                there = torch.isin(queries, rows)
                ds = p[here] * (g[here] @ v.T - delta[here]) * scale
                out[there], d_q[there] = o[here], ds @ k
    return out, d_q, d_k, d_v


def _measurement(
    case: Case,
    impl: str,
    direction: str,
    ms: float,
    flops: float,
    rate: float,
    useful: float | None,
    error: float,
) -> Measurement:
    return Measurement(
        case=case.name,
        impl=impl,
        direction=direction,
        ms=round(ms, 4),
        tflops_useful=round(flops / ms * 1e-9, 1),
        floor_ms=round(flops / rate * 1e3, 4),
        useful_over_computed=useful,
        error=error,
        gpu=torch.cuda.get_device_name(),
        torch=torch.__version__,
        triton=triton.__version__,
        spdsl=spdsl.__version__,
        date=dt.date.today().isoformat(),
        shape=f"batch {case.batch}, heads {case.heads}:{case.groups}, n {case.n}, d {case.dim}",
        dtype=str(case.dtype).removeprefix("torch."),
    )


def as_json(measurements: list[Measurement]) -> list[dict[str, object]]:
    """The measurements as plain dictionaries."""
    return [asdict(each) for each in measurements]
