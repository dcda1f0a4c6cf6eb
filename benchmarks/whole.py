"""Hierarchies, routers and reuse as whole calls beside dense attention: ``python -m benchmarks.whole --out f.json``.

Each pattern of the library at a size it is made for: milliseconds of the whole forward with its selection, of forward
and backward, of what it exports, and of cuDNN on the same tensors in the same run.  ``--prepare`` makes the first call
of each, which compiles, and ``--part I/N`` takes every N-th case, so that several processes share the work.
``--table`` writes what was measured into a page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import spdsl
from benchmarks.chart import between
from benchmarks.hierarchies import alike
from benchmarks.selections import host, time

Row = dict[str, Any]
Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pattern at one shape; ``inputs`` makes those of the pattern from queries, keys and values.

    ``why`` says why a call is slower than dense attention, where one is.
    """

    pattern: str
    n: int = 32768
    heads: int = 16
    groups: int = 16
    dim: int = 64
    label: str = ""
    parameters: dict[str, object] = field(default_factory=dict)
    inputs: Callable[[Case, Tensor, Tensor, Tensor], Inputs] = lambda case, q, k, v: {}
    causal: bool = True
    backward: bool = True
    exports: bool = False
    why: str = ""

    @property
    def name(self) -> str:
        """What the case is called in tables."""
        return self.label or self.pattern


def _stream(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    return {"full": torch.zeros(1, dtype=torch.bool, device="cuda")}


def _pages(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    """64 pages for each query, its own among them, as lists."""
    own = torch.arange(case.n, device="cuda")[:, None] // 16
    far = (torch.rand(case.n, 63, device="cuda") * (own + 1)).int()
    return {"reused": _lists(torch.cat([far, own.int()], 1))}


def _tokens(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    """1,024 tokens for each query of each group, in runs of 16 queries and 16 tokens that have chosen alike."""
    own = torch.arange(case.n, device="cuda")[:, None] // 16
    runs = (torch.rand(case.groups, case.n // 16, 64, device="cuda") * (own[::16] + 1)).int()
    tokens = runs.repeat_interleave(16, 1)[..., None] * 16 + torch.arange(16, device="cuda", dtype=torch.int32)
    layers = torch.arange(64, device="cuda") % 3 == 0
    return {"full": layers, "reused": _lists(tokens.flatten(2))}


def _lists(entries: Tensor) -> Tensor:
    """Lists of entries, ascending, each once, and then what stands for none."""
    rows = entries.sort(-1).values
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[..., 1:] = rows[..., 1:] == rows[..., :-1]
    return torch.where(again, 2**31 - 1, rows).sort(-1).values.int()


def _centres(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    assert isinstance(case.parameters["clusters"], int)
    return {"mu": torch.randn(case.heads, case.parameters["clusters"], case.dim, device="cuda")}


def _search(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    return {"Q1": torch.randn(case.heads, case.n, case.dim, device="cuda", dtype=torch.bfloat16)}


def _chunks(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    """Chunks of 64 tokens in the mean."""
    return {"cut": (torch.rand(case.n, device="cuda") < 1 / 64).cumsum(0).int()}


def _pieces(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    """Pieces of 128 tokens, the last 256 tokens being text."""
    place, count = torch.arange(case.n, device="cuda"), case.n // 128
    gains = torch.rand(case.heads, count, count, device="cuda") < 0.5
    return {"piece": (place // 128).int(), "text": place >= case.n - 256, "gains": gains}


def _estimate(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    gain = torch.rand(case.heads, case.n, device="cuda")
    return {"estimate": torch.rand(case.heads, case.n, 256, device="cuda"), "gain": gain}


def _special(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    """Sixteen special tokens at the beginning."""
    second = {"QG": torch.randn_like(q[0]), "KG": torch.randn_like(k[0]), "VG": torch.randn_like(v[0])}
    return {"special": torch.arange(case.n, device="cuda") < 16, **second}


def _prompt(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    return {"prompt": torch.full((1,), case.n // 2, dtype=torch.int32, device="cuda")}


def _blocks(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Inputs:
    """Three of ten blocks of 32 keys for each 128 queries, as lists."""
    rows, columns = case.n // 128, case.n // 32
    order = torch.rand(case.heads, rows, columns, device="cuda").argsort(-1)[..., : columns * 3 // 10]
    return {"chosen": _lists(order)}


EVERYTHING = "it attends to everything, and exports what later calls read"
VIDEO: dict[str, Any] = {"causal": False}
PROMPT: dict[str, Any] = {"heads": 32, "groups": 8, "dim": 128}

CASES = (
    Case(pattern="llsa", n=65536, **VIDEO),
    Case(pattern="hip", n=131072, groups=4, dim=128, backward=False),
    Case(
        pattern="superlinear",
        n=131072,
        heads=4,
        groups=4,
        inputs=_search,
    ),
    Case(
        pattern="superlinear",
        label="superlinear, 32,768 tokens",
        heads=4,
        groups=4,
        inputs=_search,
    ),
    Case(
        pattern="routing",
        parameters={"clusters": 128, "width": 256},
        heads=8,
        groups=8,
        inputs=_centres,
    ),
    Case(pattern="flux", label="flux, streaming", n=131072, heads=16, groups=4, dim=128, inputs=_stream),
    Case(
        pattern="flexprefill",
        n=131072,
        heads=6,
        groups=2,
        why="of random tensors its probe chooses diagonals in nearly all tiles, which are walked, and columns in "
        "these: that is dense attention, beside a selection of 2 ms (of SmolLM2's it is faster)",
    ),
    Case(
        pattern="minference_blocks",
        n=131072,
        heads=6,
        groups=2,
    ),
    Case(
        pattern="flashprefill",
        n=131072,
        heads=6,
        groups=2,
    ),
    Case(pattern="sparge", n=65536, **VIDEO),
    Case(pattern="dhsa", inputs=_chunks, **PROMPT),
    Case(pattern="sparsed_build", inputs=_prompt, exports=True, backward=False, why=EVERYTHING, **VIDEO),
    Case(pattern="sparsed_reuse", inputs=_blocks, **VIDEO),
    Case(
        pattern="delta",
        label="delta, layer 14",
        parameters={"layer": 14},
        inputs=_pages,
        exports=True,
        why=EVERYTHING,
        **PROMPT,
    ),
    Case(
        pattern="delta",
        label="delta, layer 15",
        parameters={"layer": 15},
        inputs=_pages,
        why="forward, as these pages are at random and no neighbours share them",
        **PROMPT,
    ),
    Case(pattern="hylra", label="hylra, layer 4", parameters={"layer": 4}, inputs=_tokens, **PROMPT),
    Case(pattern="snapkv", exports=True, why=EVERYTHING, **PROMPT),
    Case(pattern="ada_snapkv", exports=True, why=EVERYTHING, **PROMPT),
    Case(pattern="kinetics", **PROMPT),
    Case(
        pattern="rectified",
        inputs=_pieces,
        why="78 % of the pieces of random tensors make up the 90 % of the mass that it attends to; what is held and "
        "what comes back torch computes, from one number for each pair of pieces",
        **VIDEO,
    ),
    Case(
        pattern="sea",
        heads=8,
        groups=8,
        inputs=_estimate,
        backward=False,
    ),
    Case(pattern="longnet", n=131072),
    Case(pattern="longformer_global", inputs=_special, **VIDEO),
)


def main() -> None:
    """Measure, or make the first call of, what the words of the command ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole", description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases")
    parser.add_argument("--out", type=Path, default=Path("whole.json"), help="the JSON file to write")
    parser.add_argument("--prepare", action="store_true", help="only make the first call of each")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th case, from the I-th on")
    parser.add_argument("--table", type=Path, help="the Markdown file into which to write what is in the JSON file")
    given = parser.parse_args()
    if given.table is not None:
        made = table(json.loads(given.out.read_text(encoding="utf-8")))
        given.table.write_text(between(given.table.read_text(encoding="utf-8"), made), encoding="utf-8")
        return
    first, step = map(int, given.part.split("/"))
    rows: list[Row] = []
    for case in CASES[first::step]:
        if given.cases and case.name not in given.cases:
            continue
        torch.cuda.empty_cache()
        try:
            row = measured(case, prepare=given.prepare)
        except Exception as failure:  # the others are measured all the same
            row = {"pattern": case.name, "n": case.n, "error": f"{type(failure).__name__}: {failure}"[:600]}
        rows.append(row)
        print(json.dumps(row), flush=True)
        given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(case: Case, *, prepare: bool = False) -> Row:
    """Milliseconds of a pattern, and of cuDNN; with ``prepare`` what compiles is only called."""
    torch.manual_seed(0)
    q, k, v = alike(case)  # type: ignore[arg-type]  # it reads the sizes alone
    inputs = case.inputs(case, q, k, v)
    attn = spdsl.compile(case.pattern, **case.parameters)  # type: ignore[arg-type]
    leaves, d_out = [each.requires_grad_() for each in (q, k, v)], torch.randn_like(q)

    def forward() -> object:
        with torch.no_grad():
            return attn(q, k, v, **inputs)

    def both() -> object:
        return torch.autograd.grad(attn(*leaves, **inputs), leaves, d_out, allow_unused=True)

    def exports() -> object:
        with torch.no_grad():
            return attn.exports(q, k, v, compact=True, **inputs)

    runs: dict[str, Callable[[], object]] = {"forward_ms": forward}
    runs |= {"exports_ms": exports} if case.exports else {}
    runs |= {"both_ms": both} if case.backward else {}
    row: Row = {"pattern": case.name, "n": case.n, "parameters": case.parameters}
    row |= {"shape": f"1x{case.heads}/{case.groups}x{case.n}x{case.dim}", "causal": case.causal}
    row |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name, run in runs.items():
        run()
        if not prepare:
            # The second call is watched, or the fourth.
            row[name] = _steadily(run)
    if prepare:
        return row
    row["forward_host_ms"] = host(forward, 3)
    dense = lambda: scaled_dot_product_attention(  # noqa: E731
        q, k, v, is_causal=case.causal, enable_gqa=case.heads != case.groups
    )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        with torch.no_grad():
            row["dense_ms"] = _steadily(dense)
        if case.backward:
            row["dense_both_ms"] = _steadily(lambda: torch.autograd.grad(dense(), leaves, d_out))
    return row


def _factor(value: float) -> str:
    """A factor with two digits after the point, or two in all where it is small."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def table(rows: Sequence[Row]) -> str:
    """Results as Markdown, a line for each case, and why some are slower than dense attention."""
    cases = {case.name: case for case in CASES}
    lines = [
        "| pattern | call | forward | dense | times as fast | and backward | dense | times as fast | export |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reasons = []
    order = list(cases)
    for row in sorted(rows, key=lambda row: order.index(row["pattern"])):
        causal = ", causal" if row["causal"] else ""
        cells = [row["pattern"], row["shape"].removeprefix("1x").replace("x", " × ") + causal]
        for ours, theirs in (("forward_ms", "dense_ms"), ("both_ms", "dense_both_ms")):
            known = ours in row and theirs in row
            times = [f"{row[name]:.2f}" for name in (ours, theirs)] if known else ["–", "–"]
            cells += [*times, _factor(row[theirs] / row[ours]) if known else "–"]
        cells.append(f"{row['exports_ms']:.2f}" if "exports_ms" in row else "–")
        lines.append(f"| {' | '.join(cells)} |")
        why = cases[row["pattern"]].why
        slower = row["forward_ms"] > row["dense_ms"] or row.get("both_ms", 0.0) > row.get("dense_both_ms", 0.0)
        reasons += [f"- `{row['pattern']}`: {why}."] if slower else []
    told = ["", "Slower than dense attention:", "", *reasons] if reasons else []
    return "\n".join([*lines, *told]) + "\n"


_WATCHED = 2
"""Calls after the first until one that is watched has passed, which takes longer than others."""

LONG = 100.0
"""Milliseconds of a call that is timed once."""


def _steadily(run: Callable[[], object]) -> float:
    for _ in range(_WATCHED):
        run()
    once = time(run, 1)
    return once if once > LONG else time(run, 5)


if __name__ == "__main__":
    main()
