"""What `spdsl run` does: make tensors, call, time, compare with the reference."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spdsl.cli.output import note
from spdsl.cli.progress import Watch
from spdsl.cli.tensors import make_inputs, read_tensors
from spdsl.diagnostics import error
from spdsl.samples import Sizes

if TYPE_CHECKING:
    from spdsl.api import Attention, Pattern

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Largest error of an output, ‖out − ref‖ / ‖ref‖; a gradient may have twice that."""
PAIRS_AT_ONCE = 1 << 25
"""Elements of the dense logits that the reference holds at a time (float64, 256 MB)."""
MANY_PAIRS = 1 << 30
"""From here on the reference takes minutes on a CPU."""
CHOSEN_OTHERWISE = 10
"""A row whose error is so many times the limit has other keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run, as the command line asks for it."""

    pattern: Pattern
    parameters: Mapping[str, Any]
    sizes: Sizes
    value_dim: int
    dtype: str
    layer: int | None
    backend: str | None
    device: str
    data: Path | None
    given: tuple[str, ...]
    seed: int
    backward: bool
    check: bool


def carry_out(task: Task, watch: Watch) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run the task: the report as JSON knows it, and the tensors that were computed.  ``watch`` is told of each step.

    Raises:
        SpatError: tensors, parameters or the pattern do not fit.
    """
    from spdsl.api import compile as compile_pattern

    device = device_of(task.device)
    file = {} if task.data is None else read_tensors(task.data)
    q, k, v = _queries(task, file, device)
    sizes = Sizes(
        batch=q.shape[0], heads=q.shape[1], groups=k.shape[1], nq=q.shape[2], n=k.shape[2], head_dim=q.shape[3]
    )
    inputs, generated = make_inputs(
        task.pattern, task.parameters, task.given, sizes, layer=task.layer, seed=task.seed, file=file
    )
    attention = compile_pattern(task.pattern, layer=task.layer, backend=task.backend, **task.parameters)
    on_device: dict[str, Any] = {name: each.to(device) for name, each in inputs.items()}

    if device.type == "cuda":
        note_first_kernels()
    watch("compiling and timing", 0, None)
    ties = near_ties(attention, q, k, v, on_device) if task.check and chooses(attention.pattern) else None
    seconds, tensors = _call(attention, q, k, v, on_device, ties, backward=task.backward, seed=task.seed)
    pairs = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    if task.check and pairs > MANY_PAIRS:
        note(f"comparing {pairs:,} pairs with the dense reference takes long; `--no-check` leaves it out")
    watch("comparing with the reference", 0, None)
    errors = _compare(attention, q, k, v, on_device, tensors, ties) if task.check else {}
    report = {
        "ok": all(each["error"] <= each["limit"] for each in errors.values()),
        "pattern": task.pattern.name,
        "parameters": dict(task.parameters),
        "shape": {"q": list(q.shape), "k": list(k.shape), "v": list(v.shape)},
        "dtype": str(q.dtype).removeprefix("torch."),
        "device": name_of(device),
        "backend": task.backend or ("triton" if device.type == "cuda" else "cpu"),
        "seconds": seconds,
        "kept_pairs": _kept(task, attention, q, k, v, on_device),
        "errors": errors,
        "near_ties": None if ties is None else {"rows": int(ties.sum()), "of": ties.numel()},
        "generated_inputs": list(generated),
    }
    return report, tensors


def note_first_kernels() -> None:
    """Say once, before there is a cache, why the first call takes its time."""
    from spdsl.cache.places import cache_root

    if not cache_root().exists():
        note(f"the first call compiles kernels, which takes some seconds; they are kept in `{cache_root()}`")


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to an .npz or .pt file (bfloat16 goes to .npz as float32, which numpy has).

    Raises:
        SpatError: the file cannot be written (SP605).
    """
    from spdsl.cli.files import cannot_write

    plain = {name: each.detach().cpu() for name, each in tensors.items()}
    try:
        if path.suffix == ".pt":
            torch.save(plain, path)
        else:
            import numpy as np

            arrays = {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in plain.items()}
            np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stubs take its own flag for one of the arrays
    except OSError as refused:
        raise cannot_write(path, refused) from None
    except RuntimeError as refused:  # torch's word for a folder that is not there
        reason = str(refused).splitlines()[0]
        help = "Check that the folder exists, and its permissions."
        raise error("SP605", f"`{path}` cannot be written: {reason}", help=help) from None


def device_of(asked: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU if there is one.

    Raises:
        SpatError: there is no such device here (SP613).
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise error("SP613", f"there is no device `{asked}` here", help="Use `--device cpu`.") from None
    return device


def name_of(device: torch.device) -> str:
    """What a device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _queries(task: Task, file: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    if file:
        missing = [name for name in "qkv" if name not in file]
        if missing:
            raise error(
                "SP612",
                f"`{task.data}` holds {', '.join(file) or 'nothing'}, but not `{missing[0]}`",
                help="It needs q [batch, heads, nq, d], k [batch, groups, n, d] and v [batch, groups, n, dv].",
            )
        flat = [name for name in "qkv" if file[name].ndim != 4]
        if flat:
            raise error(
                "SP612",
                f"`{flat[0]}` in `{task.data}` has shape {list(file[flat[0]].shape)}",
                help="q, k and v have four axes: batch, heads, tokens, dim.",
            )
        return tuple(file[name].to(device) for name in "qkv")  # type: ignore[return-value]  # there are three
    sizes, generator = task.sizes, torch.Generator().manual_seed(task.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, DTYPES[task.dtype])

    return (
        draw(sizes.batch, sizes.heads, sizes.nq, sizes.head_dim),
        draw(sizes.batch, sizes.groups, sizes.n, sizes.head_dim),
        draw(sizes.batch, sizes.groups, sizes.n, task.value_dim),
    )


def _call(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Mapping[str, Any],
    ties: Tensor | None,
    *,
    backward: bool,
    seed: int,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Times and results; no gradient comes from rows with near ``ties`` ``[batch, heads, nq]``."""
    from spdsl.api import raise_pending

    def forward() -> Tensor:
        out = attention(q, k, v, **inputs)
        assert isinstance(out, Tensor)
        return out

    out = forward()
    raise_pending()
    seconds = {"forward": time_of(forward, q.device)}
    tensors = {"out": out}
    if backward:
        leaves = [each.detach().requires_grad_() for each in (q, k, v)]
        d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed + 1)).to(out)
        d_out = d_out if ties is None else d_out.masked_fill(ties[..., None], 0.0)
        result = attention(*leaves, **inputs)
        assert isinstance(result, Tensor)

        def grads() -> tuple[Tensor, ...]:
            return torch.autograd.grad(result, leaves, d_out, retain_graph=True)

        found = grads()
        seconds["backward"] = time_of(grads, q.device)
        tensors |= {"d_out": d_out} | dict(zip(("dq", "dk", "dv"), found, strict=True))
    return seconds, tensors


def time_of(action: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """The median time of an action that has run once before, in seconds."""
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _compare(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inputs: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    ties: Tensor | None,
) -> dict[str, dict[str, float]]:
    """Errors against the reference, which goes over the queries in parts that fit into memory; without rows of near
    ``ties`` ``[batch, heads, nq]``."""
    backward = "d_out" in tensors
    leaves = [each.detach().double().requires_grad_(backward) for each in (q, k, v)]
    nq, n = q.shape[2], k.shape[2]
    rows = _rows_at_once(attention.pattern, q.shape[0] * q.shape[1], nq, n)
    parts, grads = [], [torch.zeros_like(each) for each in leaves]
    for start in range(0, nq, rows):
        part = leaves[0][:, :, start : start + rows]
        out = attention.reference(part, leaves[1], leaves[2], q_start=n - nq + start, **inputs)
        assert isinstance(out, Tensor)
        parts.append(out.detach())
        if backward:
            d_out = tensors["d_out"][:, :, start : start + rows].to(out)
            for total, each in zip(grads, torch.autograd.grad(out, leaves, d_out), strict=True):
                total += each
    truth = {"out": torch.cat(parts, dim=2)}
    if ties is not None:
        truth["out"] = torch.where(ties[..., None], tensors["out"].double(), truth["out"])
    if backward:
        truth |= dict(zip(("dq", "dk", "dv"), grads, strict=True))
    limit = LIMITS[q.dtype]
    return {
        name: {"error": distance(tensors[name], each), "limit": limit if name == "out" else 2 * limit}
        for name, each in truth.items()
    }


def _rows_at_once(pattern: Pattern, heads: int, nq: int, n: int) -> int:
    """Queries that a part may have; a pattern that reads `nq`, or other queries, would change its meaning, and is not
    taken apart."""
    return nq if reads_nq(pattern) or chooses(pattern) else max(1, PAIRS_AT_ONCE // (heads * n))


def reads_nq(pattern: Pattern) -> bool:
    """Whether the number of queries may matter to a pattern."""
    return re.search(r"\bnq\b", pattern.to_spat()) is not None


def distance(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖."""
    norm = float(truth.double().norm())
    return float((found.double() - truth.double()).norm()) / (norm or 1.0)


def chooses(pattern: Pattern) -> bool:
    """Whether a pattern has stages, which depend on queries and keys."""
    return pattern.checked.graph is not None


def near_ties(attention: Attention, q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """The rows ``[batch, heads, nq]`` whose keys are not those of the reference, where that was nearly a tie."""
    with torch.no_grad():
        out, truth = attention(q, k, v, **inputs), attention.reference(q, k, v, **inputs)
    assert isinstance(out, Tensor)
    assert isinstance(truth, Tensor)
    return excused(attention, (q, k, v), inputs, out, truth)


def excused(
    attention: Attention, tensors: tuple[Tensor, ...], inputs: Mapping[str, Any], out: Tensor, truth: Tensor
) -> Tensor:
    """The rows ``[batch, heads, nq]`` of an output that are so wrong that they must have other keys, and may: in the
    reference, whose scores have more digits, what was chosen and what was not are as good as alike."""
    off: Tensor = (out.double() - truth).norm(dim=-1) > CHOSEN_OTHERWISE * LIMITS[out.dtype] * truth.norm(dim=-1)
    if not bool(off.any()):
        return off
    from spdsl import reference
    from spdsl.arguments import first_query
    from spdsl.reuse import written_out

    q, k, v = tensors
    pattern = attention.bind(q.shape[1], k.shape[1], q.shape[3])
    tables = written_out(pattern, dict(inputs), q, k)
    start = first_query(pattern.attend, q.shape[2], k.shape[2])
    return off & reference.doubtful(pattern, q, k, v, tables=tables, q_start=start)


def _kept(
    task: Task, attention: Attention, q: Tensor, k: Tensor, v: Tensor, inputs: Mapping[str, Tensor]
) -> float | dict[str, float]:
    """The share of the pairs kept, over all heads and sequences: counted tile by tile, so that long inputs are fine.

    Of several softmaxes, the share that each keeps of its own pairs.
    """
    from spdsl.explain import explain
    from spdsl.pipeline import key_of
    from spdsl.selecting import explain_stages

    key = key_of(task.pattern.checked, task.parameters, task.layer, None, False)
    if not chooses(attention.pattern):
        return explain(key, q, k, v, inputs).kept
    shares = {name: report.kept for name, report in explain_stages(key, q, k, v, inputs).softmaxes}
    return shares if len(shares) > 1 else next(iter(shares.values()))
