"""Checking and timing one case: every implementation on the same tensors, in one process, interleaved."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
import triton
from torch import Tensor
from torch._functorch import config as functorch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import spdsl
from benchmarks.cases import Case, MaskMod

functorch.donated_buffer = False  # the backward of a compiled peer is timed by running it again

ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure of a results file; times in milliseconds, rates in 10^12 useful operations a second."""

    case: str
    impl: str
    direction: str
    ms: float
    tflops_useful: float
    floor_ms: float
    error: float | None
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
    pairs = count_pairs(mod, case, device)
    runs = _runs(case, mod, peers)
    forward: dict[str, list[float]] = {}
    backward: dict[str, list[float]] = {}
    errors: dict[str, tuple[float, float]] = {}
    for name, run in list(runs.items()):
        found = _checked(name, lambda run=run: _errors(case, mod, leaves, d_out, run(*leaves)))
        if found is None:
            del runs[name]
        else:
            errors[name] = found
    for _ in range(ROUNDS):
        for name, run in runs.items():
            forward.setdefault(name, []).append(_time(lambda run=run: run(*(each.detach() for each in leaves))))
            out = run(*leaves)
            backward.setdefault(name, []).append(
                _time(lambda out=out: torch.autograd.grad(out, leaves, d_out, retain_graph=True))
            )
            del out
    return [
        _measurement(case, name, direction, median(times[name]), factor * case.dim * pairs, rate, errors[name][index])
        for index, (direction, times, factor) in enumerate((("fwd", forward, 4), ("bwd", backward, 10)))
        for name in runs
    ]


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
        runs |= {"flex": _flex(case, mod, device)} | ({"cudnn": _cudnn} if case.causal else {})
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
    """The pairs that a mask keeps over batch and heads, counted one by one."""
    b = torch.zeros((), dtype=torch.int64, device=device)
    keys = torch.arange(case.n, device=device)[None, :]
    total = 0
    for head in range(case.heads):
        h = torch.full((), head, device=device)
        for start in range(0, case.n, 1024):
            rows = torch.arange(start, min(start + 1024, case.n), device=device)[:, None]
            total += int(mod(b, h, rows, keys).expand(rows.shape[0], case.n).sum())
    return total * case.batch


def matrix_rate() -> float:
    """Operations a second of a bf16 matrix product of 8192³ on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / (median(_time(lambda: a @ b) for _ in range(ROUNDS)) * 1e-3)


def _spdsl(case: Case, device: torch.device) -> Forward:
    pattern = spdsl.loads(case.pattern) if "{" in case.pattern else spdsl.load(case.pattern)
    attention = spdsl.compile(pattern, **case.parameters)
    inputs = case.inputs(device)
    return lambda q, k, v: attention(q, k, v, **inputs)  # type: ignore[return-value]


def _flex(case: Case, mod: MaskMod, device: torch.device) -> Forward:
    compiled = torch.compile(flex_attention)
    block_mask = torch.compile(create_block_mask)(
        mod, None, case.heads if case.per_head else None, case.n, case.n, device=device
    )
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask, enable_gqa=case.groups != case.heads)


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )


def _time(run: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median"))


def _errors(case: Case, mod: MaskMod, leaves: list[Tensor], d_out: Tensor, out: Tensor) -> tuple[float, float]:
    """Relative errors of the output and of the worst gradient of the last group of heads, against float64."""
    found = torch.autograd.grad(out, leaves, d_out)
    ratio = case.heads // case.groups
    heads = range(case.heads - ratio, case.heads)
    q, k, v = (each.detach()[-1].double() for each in leaves)
    expected = _dense(q[heads.start :], k[-1], v[-1], d_out[-1, heads.start :].double(), mod, case, heads)
    actual = (out[-1, heads.start :], found[0][-1, heads.start :], found[1][-1, -1], found[2][-1, -1])
    worst = [float((a.double() - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True)]
    return worst[0], max(worst[1:])


def _dense(
    q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, mod: MaskMod, case: Case, heads: range
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and gradients of the heads of one group in float64, a thousand rows at a time."""
    out, dq, dk, dv = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    keys = torch.arange(case.n, device=q.device)[None, :]
    b = torch.full((), case.batch - 1, device=q.device)
    scale = 1 / math.sqrt(case.dim)
    for position, head in enumerate(heads):
        h = torch.full((), head, device=q.device)
        for start in range(0, case.n, 1024):
            rows = slice(start, min(start + 1024, case.n))
            keep = mod(b, h, torch.arange(rows.start, rows.stop, device=q.device)[:, None], keys)
            logits = (q[position, rows] @ k.T * scale).masked_fill(~keep, -math.inf)
            p = torch.nan_to_num(torch.softmax(logits, dim=-1))
            g = d_out[position, rows]
            out[position, rows] = p @ v
            dv += p.T @ g
            ds = p * (g @ v.T - (g * out[position, rows]).sum(-1, keepdim=True)) * scale
            dq[position, rows] = ds @ k
            dk += ds.T @ q[position, rows]
    return out, dq, dk, dv


def _measurement(
    case: Case, impl: str, direction: str, ms: float, flops: float, rate: float, error: float
) -> Measurement:
    return Measurement(
        case=case.name,
        impl=impl,
        direction=direction,
        ms=round(ms, 4),
        tflops_useful=round(flops / ms * 1e-9, 1),
        floor_ms=round(flops / rate * 1e3, 4),
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
