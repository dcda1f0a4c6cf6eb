"""Hierarchies and the patterns of prompts beside dense attention: ``python -m benchmarks.hierarchies --out f.json``.

For each case the times of the selections, of the whole forward, in a CUDA graph too, and of forward and backward, and
those of cuDNN on the same tensors.  ``--extract FILE`` keeps queries, keys and values of SmolLM2-135M-Instruct as they
are before rotation: of layers 10 and 18 the first key head with its three query heads, 8,192 tokens of Python's help.
``--real FILE`` repeats these up to the length wanted, and rotates them by their positions there.  ``--growth`` measures
from 32,768 to 524,288 tokens, and ``--plot`` draws what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import spdsl
from benchmarks.selections import call_of, host, peak, time
from spdsl.runtime.softmax_operands import sets

Row = dict[str, Any]
Tensors = tuple[Tensor, Tensor, Tensor]

LENGTHS = tuple(32768 << step for step in range(5))
LAYERS = (10, 18)
BASE = 100_000.0
"""What the rotation of SmolLM2 begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pattern of the library, or the text of one, at one shape; of ``real`` ones the tensors come from a file."""

    pattern: str
    n: int
    label: str = ""
    heads: int = 6
    groups: int = 2
    dim: int = 64
    parameters: dict[str, object] = field(default_factory=dict)
    causal: bool = True
    backward: bool = False
    real: bool = False


CASES = (
    Case(pattern="llsa", n=65536, heads=16, groups=16, causal=False, backward=True),
    Case(pattern="hip", n=131072, heads=16, groups=4, dim=128),
    Case(pattern="hip", n=131072, heads=16, groups=4, dim=128, parameters={"rows": 128, "every": 8}),
    Case(pattern="minference_blocks", n=131072, real=True),
    *(
        Case(pattern="flashprefill", n=131072, real=True, parameters={"alpha": alpha})
        for alpha in (0.12, 0.01, 0.005, 0.003, 0.001)
    ),
    *(
        Case(pattern="flexprefill", n=131072, real=True, parameters={"mass": mass, "tau": tau})
        for mass, tau in ((0.9, 0.1), (0.9, 0.3), (0.98, 0.3), (0.99, 0.3))
    ),
)


DEEPER = """
pattern llsa_of_three(block: int in 1.. = 16, picks: int[3] in 0.. = (8, 8, 8)) {
  axis fine = token by block
  axis coarse = fine by block
  axis whole = coarse by block
  let Q1 = mean(Q, per = q.fine)
  let Q2 = mean(Q1, per = q.coarse)
  let Q3 = mean(Q2, per = q.whole)
  let K1 = mean(K, per = k.fine)
  let K2 = mean(K1, per = k.coarse)
  let K3 = mean(K2, per = k.whole)
  let V1 = mean(V, per = k.fine)
  let V2 = mean(V1, per = k.coarse)
  let V3 = mean(V2, per = k.whole)
  let widest = score(Q3, K3) |> top(picks[2])
  let wide = score(Q2, K2) |> only(widest) |> top(picks[1])
  let narrow = score(Q1, K1) |> only(wide) |> top(picks[0])
  return attend {
    keep narrow
    keep wide from (K1, V1) weight k.fine.size
    keep widest from (K2, V2) weight k.coarse.size
    keep all from (K3, V3) weight k.whole.size
  }
}
"""
"""As llsa, with one more level: each length doubles the top of a pyramid that is not made higher."""


def main() -> None:
    """Measure, keep or draw what the words of the command ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hierarchies", description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of patterns")
    parser.add_argument("--out", type=Path, default=Path("hierarchies.json"), help="the JSON file to write")
    parser.add_argument("--real", type=Path, help="what `--extract` wrote")
    parser.add_argument("--extract", type=Path, help="keep tensors of SmolLM2 here, and do nothing else")
    parser.add_argument("--growth", action="store_true", help="measure llsa and hip at all lengths")
    parser.add_argument("--plot", type=Path, help="draw the growth in the JSON file into this PNG file")
    given = parser.parse_args()
    if given.extract is not None:
        torch.save(extracted(), given.extract)
        return
    if given.plot is not None:
        plot(json.loads(given.out.read_text(encoding="utf-8")), given.plot)
        return
    rows: list[Row] = []
    for case in growing() if given.growth else CASES:
        if (given.cases and named(case) not in given.cases) or (case.real and given.real is None):
            continue
        torch.cuda.empty_cache()
        rows.append(measured(case, given.real, beside=not given.growth))
        print(json.dumps(rows[-1]), flush=True)
        given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def named(case: Case) -> str:
    """The name of a case."""
    return case.label or case.pattern


SERIES = ("llsa", "llsa of three levels", "hip", "hip, 512 first chunks")


def growing() -> tuple[Case, ...]:
    """The hierarchies at all lengths: as they are, and with as many levels, or as large first chunks, as lengths ask
    for."""
    found = []
    for n in LENGTHS:
        two = Case(pattern="llsa", n=n, heads=16, groups=16, causal=False)
        hip = Case(pattern="hip", n=n, heads=8, groups=2, dim=128)
        chunks = {"chunk": (n // 512, 32, 8)}
        found += [two, replace(two, pattern=DEEPER, label=SERIES[1]), hip]
        found.append(replace(hip, parameters=chunks, label=SERIES[3]))
    return tuple(found)


def measured(case: Case, real: Path | None, *, beside: bool) -> Row:
    """Milliseconds, and GiB beside the tensors; of causal cases also what is kept of the mass and of the pairs."""
    torch.manual_seed(0)
    q, k, v = rotated(real, case.n) if case.real and real is not None else alike(case)
    pattern = spdsl.loads(case.pattern) if "{" in case.pattern else case.pattern
    attn = spdsl.compile(pattern, **case.parameters)  # type: ignore[arg-type]
    row: Row = {
        "pattern": named(case),
        "parameters": case.parameters,
        "n": case.n,
        "shape": f"1x{case.heads}/{case.groups}x{case.n}x{case.dim}",
        "tensors": "SmolLM2" if case.real else "alike in runs of 64",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    select = selection(attn, q, k, v)
    with torch.no_grad():
        for _ in range(2):  # steps of selections are watched in the second call
            select(), attn(q, k, v)
        row |= {"selection_ms": time(select, 5), "forward_ms": time(lambda: attn(q, k, v), 5)}
        row["selection_host_ms"] = host(select)
        row |= {"graph_ms": graphed(lambda: attn(q, k, v)), "forward_gib": peak(lambda: attn(q, k, v))}
        if beside:
            dense = lambda: scaled_dot_product_attention(  # noqa: E731
                q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.groups
            )
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                row["dense_ms"] = time(dense, 3)
        if case.causal and beside:
            row["mass"] = kept_mass(attn, q, k, v)
    if case.backward:
        row |= both_ways(attn, case, q, k, v)
    return row


def selection(attn: spdsl.Attention, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    """What computes all sets that softmaxes read: as lists, or of keys alone as bools."""
    pattern, call = call_of(attn, q, k, v, {})
    return lambda: sets(pattern, call)


def both_ways(attn: spdsl.Attention, case: Case, q: Tensor, k: Tensor, v: Tensor) -> Row:
    """Forward and backward together, with the selection."""
    leaves = [each.requires_grad_() for each in (q, k, v)]
    d_out = torch.randn_like(q)
    run = lambda: torch.autograd.grad(attn(*leaves), leaves, d_out)  # type: ignore[arg-type]  # noqa: E731
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        dense = time(
            lambda: torch.autograd.grad(scaled_dot_product_attention(*leaves, is_causal=case.causal), leaves, d_out), 3
        )
    return {"both_ms": time(run, 5), "both_graph_ms": graphed(run), "dense_both_ms": dense, "both_gib": peak(run)}


def graphed(run: Callable[[], object]) -> float | None:
    """Milliseconds of a replay of a captured graph; None where a call cannot be captured."""
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()
    except RuntimeError:
        return None
    found = time(graph.replay, 5)
    del kept
    return found


def kept_mass(attn: spdsl.Attention, q: Tensor, k: Tensor, v: Tensor) -> list[float]:
    """Of each head, the mean over queries of what the kept keys have of the whole softmax."""
    (_, some), (_, all_) = (each(q, k, v, return_lse=True) for each in (attn, spdsl.compile("causal")))
    return [round(each, 4) for each in torch.exp(some - all_).double().mean((0, 2)).tolist()]


# ---------------------------------------------------------------- tensors


def alike(case: Case) -> Tensors:
    """Random tensors whose rows have the larger part in common with 63 neighbours."""
    made = []
    for heads in (case.heads, case.groups, case.groups):
        own, shared = (
            torch.randn(1, heads, -(-case.n // size), case.dim, device="cuda", dtype=torch.bfloat16) for size in (1, 64)
        )
        made.append(own * 0.5 + shared.repeat_interleave(64, 2)[:, :, : case.n])
    return made[0], made[1], made[2]


def rotated(path: Path, n: int, device: str = "cuda") -> Tensors:
    """The tensors of a file, repeated up to ``n`` tokens, queries and keys rotated by their positions."""
    given = torch.load(path, map_location=device)
    repeats = -(-n // given["q"].shape[1])
    q, k, v = (given[name].float().repeat(1, repeats, 1)[:, :n] for name in "qkv")
    half = q.shape[-1] // 2
    angle = torch.arange(n, device=device)[:, None] / BASE ** (torch.arange(half, device=device) / half)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    turn = lambda x: x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin  # noqa: E731
    made = [each.bfloat16()[None].contiguous() for each in (turn(q), turn(k), v)]
    return made[0], made[1], made[2]


def extracted() -> dict[str, Tensor]:
    """Queries ``[6, 8192, 64]``, keys and values ``[2, 8192, 64]``, before rotation, in bf16."""
    model_of = import_module("examples.05_language_model")
    tokenizer, model = model_of.load(torch.device("cpu"), torch.float32)
    tokens = tokenizer(model_of.text(), return_tensors="pt").input_ids[:, :8192]
    model.set_attn_implementation("sdpa")
    seen: dict[tuple[str, int], Tensor] = {}
    for layer in LAYERS:
        for name in "qkv":
            projection = getattr(model.model.layers[layer].self_attn, f"{name}_proj")
            projection.register_forward_hook(lambda _m, _i, out, at=(name, layer): seen.__setitem__(at, out[0]))
    with torch.no_grad():
        model.model(input_ids=tokens, use_cache=False)
    heads = {"q": 3, "k": 1, "v": 1}
    return {
        name: torch.cat([seen[name, layer].unflatten(-1, (-1, 64))[:, :count].transpose(0, 1) for layer in LAYERS])
        .bfloat16()
        .contiguous()
        for name, count in heads.items()
    }


# ---------------------------------------------------------------- growth


def plot(rows: list[Row], path: Path) -> None:
    """Time and memory by length, beside a line that follows N log N through the first measured point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in zip(SERIES, ("#1f5fa8", "#7fb2e5", "#b5651d", "#e5b27f"), strict=True):
        here = sorted((row for row in rows if row["pattern"] == name and row["n"] in LENGTHS), key=lambda row: row["n"])
        if not here:
            continue
        lengths = [row["n"] for row in here]
        times = [row["graph_ms"] or row["forward_ms"] for row in here]
        left.plot(lengths, times, "o-", color=colour, label=name)
        left.plot(lengths, [row["selection_ms"] for row in here], ":", color=colour)
        law = [times[0] * n * math.log(n) / (lengths[0] * math.log(lengths[0])) for n in lengths]
        left.plot(lengths, law, "--", color="#888888", linewidth=0.8, label="N log N" if name == "llsa" else None)
        right.plot(lengths, [row["forward_gib"] for row in here], "o-", color=colour, label=name)
    for axis, title in ((left, "milliseconds"), (right, "GiB beside the tensors")):
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=title)
        axis.set_xticks(LENGTHS, [f"{n // 1024}k" for n in LENGTHS])
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=7)
    figure.suptitle(rows[0]["gpu"])
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
