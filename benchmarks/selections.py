"""What selecting costs beside attending: ``python -m benchmarks.selections --out f.json``, or some cases by name.

For every case the time of the selections alone (scores, ranking, lists), of the whole forward, of the backward, and of
dense causal SDPA on the same tensors in the same run; beside them the memory that each takes at its peak, and the
host's time for a selection.  Before anything is timed, rows of its lists and of its output are compared with what does
not share its kernels (`benchmarks.sampled`); a wrong one ends the run.  Results are written after every figure, so that
a run that is cut short keeps what it measured.  ``--prepare`` compiles beforehand.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import spdsl
from benchmarks import sampled
from spdsl.pipeline import bound
from spdsl.runtime import graphs
from spdsl.semantics.nodes import BoundPattern
from spdsl.staged import in_order, with_lifetimes

Inputs = dict[str, Tensor]
Result = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pattern of the library, or the text of one, at one shape.

    ``smooth`` neighbouring keys and queries share the larger part of their vectors, so that neighbouring queries
    choose alike, as those of a model do; 0 for independent numbers.  ``inputs`` makes those of the pattern.  Runs of
    ``run`` queries are compared with the reference: as many as choose together.  ``full``: beside dense attention of
    all keys.
    """

    name: str
    pattern: str
    parameters: dict[str, object] = field(default_factory=dict)
    heads: int = 32
    groups: int = 2
    n: int = 131072
    dim: int = 128
    smooth: int = 64
    inputs: Callable[[Case], Inputs] = lambda case: {}
    backward: bool = True
    run: int = 2
    full: bool = False


def _gates(case: Case) -> Inputs:
    return {"gate": torch.rand(3, case.heads, case.n, device="cuda")}


def _indexer(case: Case) -> Inputs:
    """64 index heads of 128 numbers over one head of index keys."""
    make = {"device": "cuda", "dtype": torch.bfloat16}
    return {
        "QI": torch.randn(64, case.n, 128, **make),  # type: ignore[call-overload]
        "KI": torch.randn(case.n, 128, **make),  # type: ignore[call-overload]
        "wt": torch.rand(64, case.n, device="cuda"),
    }


def _pooled(case: Case) -> Inputs:
    count = -(-case.n // 64)
    return {name: torch.randn(case.heads, count, 128, device="cuda") for name in ("GQ", "GK")}


def _video(case: Case) -> Inputs:
    return {"gate": torch.randn(case.heads, case.n, case.dim, device="cuda", dtype=torch.bfloat16)}


def _bias(case: Case) -> Inputs:
    return {"delta": torch.randn(case.groups, case.n, device="cuda")}


DENSE = 1 << 17
"""The most tokens for which dense attention is timed."""

PEER = {"compress": 64, "stride": 64, "block": 64, "picks": 16}
"""What flash-linear-attention's kernel of native sparse attention fixes."""

BY_BLOCK = """
pattern infllm_by_block(compress: int in 1.. = 32, stride: int in 1.. = 16, block: int in 1.. = 64,
                        picks: int in 0.. = 64, window: int in 0.. = 2048) {
  axis win = token by compress step stride
  axis blk = token by block
  let share = score(mean(Q, per = q.blk), mean(K, per = k.win)) |> only(k.win.last <= q.blk.first) |> softmax
              |> sum(per = g)
  let chosen = share |> max(per = k.blk, windows = touching)
               |> force(k.blk == 0 or 0 <= q.blk - k.blk < window // block) |> top(picks)
  keep causal and chosen
}
"""
"""As infllm_v2, with one selection for each block of queries, by their mean."""

CASES = (
    Case(name="infllm_v2_131k", pattern="infllm_v2"),
    Case(name="infllm_by_block_131k", pattern=BY_BLOCK, run=64),
    Case(name="moba_65k", pattern="moba", parameters={"block": 512, "picks": 6}, heads=16, groups=16, n=65536),
    Case(name="nsa_8k", pattern="nsa", parameters=dict(PEER), heads=64, groups=4, n=8192, smooth=0, inputs=_gates),
    Case(name="nsa_8k_alike", pattern="nsa", parameters=dict(PEER), heads=64, groups=4, n=8192, inputs=_gates),
    Case(name="nsa_8k_32_16", pattern="nsa", heads=64, groups=4, n=8192, smooth=0, inputs=_gates),
    Case(name="quest_32k", pattern="quest", heads=32, groups=8, n=32768, backward=False),
    Case(name="dsa_32k", pattern="dsa", heads=16, groups=1, n=32768, inputs=_indexer, backward=False),
    Case(name="seer_attention_32k", pattern="seer_attention", groups=8, n=32768, inputs=_pooled, backward=False),
    Case(name="xattention_32k", pattern="xattention", groups=8, n=32768, backward=False),
    Case(name="vertical_slash_32k", pattern="vertical_slash", groups=8, n=32768, backward=False),
    Case(name="dma_32k", pattern="dma", groups=8, n=32768, inputs=_bias),
    Case(
        name="vsa_32k",
        pattern="vsa",
        parameters={"frames": 16, "height": 32, "width": 64},
        heads=12,
        groups=12,
        n=32768,
        inputs=_video,
        full=True,
    ),
    Case(name="infllm_v2_524k", pattern="infllm_v2", n=524288),
)


def main() -> None:
    """Measure the cases named on the command line, or all, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selections", description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases")
    parser.add_argument("--out", type=Path, default=Path("selections.json"), help="the JSON file to write")
    parser.add_argument("--prepare", action="store_true", help="run each case once on few tokens, and time nothing")
    parser.add_argument("--selection", action="store_true", help="time the selection and SDPA alone")
    parser.add_argument("--unchecked", action="store_true", help="compare nothing with the reference")
    parser.add_argument("--memory", type=int, nargs="*", help="measure the memory alone, at these numbers of tokens")
    given = parser.parse_args()
    results: list[Result] = []
    for case in CASES:
        if given.cases and case.name not in given.cases:
            continue
        torch.cuda.empty_cache()
        if given.memory is not None:
            for n in given.memory or [case.n]:
                results.append({"case": case.name, "n": n, "parameters": case.parameters, **machine()})
                results[-1] |= memory(replace(case, n=n))
                given.out.write_text(json.dumps(results, indent=1) + "\n")
            continue
        if given.prepare:
            prepare(case)
            continue
        result: Result = {
            "case": case.name,
            "parameters": case.parameters,
            "shape": f"1x{case.heads}/{case.groups}x{case.n}x{case.dim}",
            **machine(),
        }
        results.append(result)
        for name, value in figures(case, whole=not given.selection, checked=not given.unchecked):
            result[name] = value
            given.out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(result), flush=True)


def machine() -> dict[str, str]:
    """Where and when something is measured."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
    }


def prepare(case: Case) -> None:
    """Compile what `figures` runs, by a call with fewer tokens."""
    short = case if case.pattern == "vsa" else replace(case, n=min(case.n, 16384))
    for _ in figures(short, rounds=1, checked=False):
        pass


def figures(
    case: Case, *, whole: bool = True, rounds: int = 5, checked: bool = True
) -> Iterator[tuple[str, float | dict[str, float]]]:
    """Names and values of a case, one by one: milliseconds, and GiB beside tensors and results.

    Raises:
        AssertionError: rows that were looked at are wrong.
    """
    q, k, v, inputs = tensors(case)
    pattern = spdsl.loads(case.pattern) if "{" in case.pattern else case.pattern
    attn = spdsl.compile(pattern, **case.parameters)  # type: ignore[arg-type]
    with torch.no_grad():
        select = selection(attn, q, k, v, inputs)
        if checked:
            yield "near_ties_exchanged", sampled.lists_are_right(*call_of(attn, q, k, v, inputs))
            if whole:
                yield "output_error", sampled.output_is_right(attn, q, k, v, inputs, run=case.run)
        yield "selection_gib", peak(select)
        yield "lists_gib", round(sum(each.nbytes for each in select().values()) / 2**30, 3)
        yield "selection_host_ms", host(select)
        yield "selection_ms", time(select, rounds)
        dense = lambda: causal(q, k, v, full=case.full)  # noqa: E731
        if case.n <= DENSE:
            yield "dense_forward_ms", time(dense, rounds)
        if not whole:
            return
        yield "forward_gib", peak(lambda: attn(q, k, v, **inputs))
        yield "forward_host_ms", host(lambda: attn(q, k, v, **inputs))
        yield "forward_ms", time(lambda: attn(q, k, v, **inputs), rounds)
    if not case.backward:
        return
    leaves = [each.requires_grad_() for each in (q, k, v)]
    d_out = torch.randn_like(q)
    for name, run in (("", lambda: attn(*leaves, **inputs)), ("dense_", dense)):
        if name and case.n > DENSE:
            return
        if not name:
            for _ in range(2):  # a third call repeats the steps of the second
                torch.autograd.grad(run(), leaves, d_out)
        out = run()
        back = lambda out=out: torch.autograd.grad(out, leaves, d_out, retain_graph=True)  # noqa: E731
        if not name:
            yield "backward_gib", peak(back)
        yield f"{name}backward_ms", time(back, rounds)
        del out, back


def memory(case: Case) -> dict[str, float]:
    """GiB of the tensors, of lists and results, and what a call holds at its peak beyond all of these: of the first
    two calls, of which the second is watched for its steps, and of the third, which repeats them."""
    q, k, v, inputs = tensors(case)
    pattern = spdsl.loads(case.pattern) if "{" in case.pattern else case.pattern
    attn = spdsl.compile(pattern, **case.parameters)  # type: ignore[arg-type]
    leaves = [each.requires_grad_() for each in (q, k, v)]
    found = {"tensors_gib": _gib(sum(each.nbytes for each in (*leaves, *inputs.values())))}
    with torch.no_grad():
        select = selection(attn, q, k, v, inputs)
        found["lists_gib"] = _gib(sum(each.nbytes for each in select().values()))
        found["selection_gib"] = peak(select, again=False)

    def both() -> tuple[Tensor, ...]:
        out = attn(*leaves, **inputs)
        assert isinstance(out, Tensor)
        return out, *(torch.autograd.grad(out, leaves, d_out) if case.backward else ())

    d_out = torch.randn_like(q)
    kinds: dict[str, Callable[[], object]] = {"forward": torch.no_grad()(lambda: attn(*leaves, **inputs))}
    if case.backward:
        kinds["both"] = both
    for name, run in kinds.items():
        found[f"{name}_first_gib"] = max(peak(run, again=False) for _ in range(2))
        found[f"{name}_gib"] = peak(run, again=False)
    found["results_gib"] = _gib(q.nbytes * (1 if not case.backward else 2) + (k.nbytes + v.nbytes) * case.backward)
    return found


def _gib(size: int) -> float:
    return round(size / 2**30, 3)


def causal(q: Tensor, k: Tensor, v: Tensor, *, full: bool = False) -> Tensor:
    """Dense causal attention by cuDNN, or where it cannot by what torch takes; ``full``: of all keys."""
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends, set_priority=True):
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=not full, enable_gqa=q.shape[1] != k.shape[1]
        )


def tensors(case: Case) -> tuple[Tensor, Tensor, Tensor, Inputs]:
    """Queries, keys and values in bf16, and the pattern's inputs."""
    torch.manual_seed(0)
    made = []
    for heads in (case.heads, case.groups, case.groups):
        x = torch.randn(1, heads, case.n, case.dim, device="cuda", dtype=torch.bfloat16)
        if case.smooth:
            coarse = torch.randn(1, heads, -(-case.n // case.smooth), case.dim, device="cuda", dtype=torch.bfloat16)
            x = x * 0.5 + coarse.repeat_interleave(case.smooth, 2)[:, :, : case.n]
        made.append(x)
    return made[0], made[1], made[2], case.inputs(case)


def selection(
    attn: spdsl.Attention, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs
) -> Callable[[], dict[str, Tensor]]:
    """What computes all selections of a pattern, as lists."""
    pattern, call = call_of(attn, q, k, v, inputs)
    given = attn._open_key, q, k, v, inputs, None, 0  # noqa: SLF001  # as calls have it
    if with_lifetimes(*given)[0] != given[0]:
        return lambda: {name: each for name, each in with_lifetimes(*given)[1].items() if name not in inputs}
    return lambda: graphs.selections(pattern, call)


def call_of(
    attn: spdsl.Attention, q: Tensor, k: Tensor, v: Tensor, inputs: Inputs
) -> tuple[BoundPattern, graphs.Inputs]:
    """What `graphs.selections` takes."""
    key = attn._open_key  # noqa: SLF001  # as calls have it
    key, (q, k, v), tables, _ = in_order(key, q, k, v, inputs, None, 0)
    return bound(key, q.shape[1], k.shape[1], q.shape[3]), graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=0)


def host(run: Callable[[], object], rounds: int = 10) -> float:
    """Milliseconds until the host goes on, the device being idle before; the least of some runs."""
    run()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = perf_counter()
        run()
        times.append(perf_counter() - begin)
    return round(min(times) * 1e3, 4)


def time(run: Callable[[], object], rounds: int) -> float:
    """Milliseconds; the median of so many runs after one that does not count."""
    run()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return round(median(times), 3)


def peak(run: Callable[[], object], *, again: bool = True) -> float:
    """GiB that a run holds at its peak beyond what was held before and what it returns; ``again``: after another."""
    if again:
        run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = run()
    torch.cuda.synchronize()
    after = torch.cuda.memory_allocated()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return _gib(peak - max(before, after))


if __name__ == "__main__":
    main()
