"""Decoding: few queries against a cache of keys, checked against float64 and timed beside FlexAttention.

python -m benchmarks.decoding full streaming --out decoding.json
python -m benchmarks.decoding --prepare
python -m benchmarks.decoding --table docs/decoding.md --out decoding.json

Every call reads what its pattern keeps of the cache once; the rate is that of these bytes.  Caches are flushed before
each call.  The rate of a copy, reading and writing, is measured in the same run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor
from torch._inductor import config as inductor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import spdsl
from benchmarks.chart import between

inductor.compile_threads = 1  # or its processes start beside what is timed first

ROUNDS = 3
MOST_ERROR = 1e-2
"""Of an output in bfloat16 against float64, relative to its norm."""

Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pattern over a cache of ``n`` keys for the last ``nq`` positions.

    With ``ragged`` sequences end at different places, which only the device knows.  With ``page`` keys lie in pages of
    so many rows, in random order.  ``captured`` calls are replayed from a CUDA graph.
    """

    name: str
    pattern: str
    parameters: dict[str, Any] = field(default_factory=dict)
    batch: int = 8
    heads: int = 32
    groups: int = 8
    nq: int = 1
    n: int = 65_536
    dim: int = 128
    ragged: bool = False
    page: int = 0
    captured: bool = False

    @property
    def shape(self) -> str:
        """The sizes in words."""
        more = f", pages of {self.page}" if self.page else ", ragged" if self.ragged else ""
        more += f"{', CUDA graph' if self.captured else ''}"
        return f"batch {self.batch}, heads {self.heads}:{self.groups}, nq {self.nq}, n {self.n}, d {self.dim}{more}"


STREAMING = {"window": 2048, "sinks": 64}
CASES = (
    Case(name="full", pattern="full"),
    Case(name="streaming", pattern="streaming", parameters=STREAMING),
    Case(name="streaming-graph", pattern="streaming", parameters=STREAMING, captured=True),
    Case(name="causal-chunk16", pattern="causal", nq=16),
    Case(name="full-batch1", pattern="full", batch=1),
    Case(name="streaming-batch1", pattern="streaming", parameters=STREAMING, batch=1),
    Case(name="causal-ragged", pattern="causal", ragged=True),
    Case(name="streaming-ragged", pattern="streaming", parameters=STREAMING, ragged=True),
    Case(name="streaming-ragged-graph", pattern="streaming", parameters=STREAMING, ragged=True, captured=True),
    Case(name="causal-paged16", pattern="causal", ragged=True, page=16, captured=True),
    Case(name="causal-paged64", pattern="causal", ragged=True, page=64, captured=True),
    Case(name="streaming-paged16", pattern="streaming", parameters=STREAMING, ragged=True, page=16, captured=True),
    Case(name="dilated", pattern="dilated", parameters={"span": 16_384, "dilation": 4}),
    Case(name="strided", pattern="strided", parameters={"local": 128, "stride": 128}),
    Case(name="full-heads", pattern="full", heads=8),
    Case(name="full-8192", pattern="full", n=8192),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One figure: milliseconds, and the bytes of keys and values that are kept over time, in 10^12 a second."""

    case: str
    impl: str
    ms: float
    tb_s: float
    copy_tb_s: float
    error: float
    gpu: str
    torch: str
    triton: str
    spdsl: str
    date: str
    shape: str
    dtype: str


def main() -> None:
    """Measure the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="case", help=f"any of: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--out", type=Path, default=Path("decoding.json"), help="the JSON file to write")
    parser.add_argument("--prepare", action="store_true", help="only compile what will be measured")
    parser.add_argument("--no-peers", action="store_true", help="time only spdsl")
    parser.add_argument("--table", type=Path, help="measure nothing, and write the results into this Markdown file")
    given = parser.parse_args()
    if given.table is not None:
        page = given.table.read_text(encoding="utf-8")
        given.table.write_text(between(page, table(json.loads(given.out.read_text()))), encoding="utf-8")
        return
    results: list[dict[str, object]] = []
    rate = 0.0 if given.prepare else copy_rate()
    print(f"copy {rate * 1e-12:.2f} TB/s on {torch.cuda.get_device_name()}")
    for case in CASES:
        if given.cases and case.name not in given.cases:
            continue
        for each in measure(case, rate, peers=not given.no_peers, only_compile=given.prepare):
            results.append(asdict(each))
            print(f"{each.case:18} {each.impl:6} {each.ms:8.4f} ms {each.tb_s:6.2f} TB/s  error {each.error:.1e}")
        given.out.write_text(json.dumps(results, indent=1) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Results as Markdown, a line for each case: milliseconds, and 10^12 bytes a second of ours."""
    lines = ["| case | call | spdsl | TB/s | FlexAttention |", "|---|---|---|---|---|"]
    peers = {row["case"]: row["ms"] for row in rows if row["impl"] == "flex"}
    for row in rows:
        if row["impl"] == "spdsl":
            peer = f"{peers[row['case']]:.3f}" if row["case"] in peers else "–"
            lines.append(f"| {row['case']} | {row['shape']} | {row['ms']:.3f} | {row['tb_s']:.2f} | {peer} |")
    return "\n".join(lines) + "\n"


def measure(case: Case, rate: float, *, peers: bool, only_compile: bool) -> list[Measurement]:
    """Check and time one case."""
    torch.compiler.reset()
    torch.manual_seed(0)
    shapes = [(case.heads, case.nq), (case.groups, case.n), (case.groups, case.n)]
    q, k, v = (
        torch.randn(case.batch, heads, rows, case.dim, device="cuda", dtype=torch.bfloat16) for heads, rows in shapes
    )
    lengths = torch.full((case.batch,), case.n, dtype=torch.int32, device="cuda")
    if case.ragged:
        lengths = torch.linspace(case.n / 2, case.n, case.batch, device="cuda").int()
    runs = {"spdsl": _spdsl(case, q, k, v, lengths)}
    if peers and not case.ragged:
        runs["flex"] = _flex(case, q, k, v)
    for run in runs.values():
        run()
    if only_compile:
        return []
    masks = [_mask(case, int(length)) for length in lengths]
    read = sum(int(mask.any(0).sum()) for mask in masks)
    size = read * case.groups * 2 * case.dim * k.element_size()
    found = []
    for name, run in runs.items():
        ms = median(_time(run) for _ in range(ROUNDS))
        # What was timed is what is checked: a graph may have lost what it read when it was checked before.
        run().fill_(math.nan)
        error = _error(run(), q, k, v, masks)
        if name == "spdsl" and not error < MOST_ERROR:
            raise SystemExit(f"{case.name}: relative error {error:.1e}, at most {MOST_ERROR} is right in bf16")
        found.append(
            Measurement(
                case=case.name,
                impl=name,
                ms=round(ms, 5),
                tb_s=round(size / ms * 1e-9, 3),
                copy_tb_s=round(rate * 1e-12, 3),
                error=error,
                gpu=torch.cuda.get_device_name(),
                torch=torch.__version__,
                triton=triton.__version__,
                spdsl=spdsl.__version__,
                date=dt.date.today().isoformat(),
                shape=case.shape,
                dtype="bfloat16",
            )
        )
    return found


def copy_rate() -> float:
    """Bytes read and written a second by a copy of 2 GiB."""
    source = torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median(_time(lambda: target.copy_(source)) for _ in range(ROUNDS)) * 1e-3)


def _spdsl(case: Case, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Run:
    attention = spdsl.compile(case.pattern, **case.parameters)
    places: dict[str, Any] = {"k_len": lengths} if case.ragged else {}
    if case.page:
        order = torch.randperm(case.batch * case.n // case.page, device="cuda")
        k, v = (_paged(x, case.page, order) for x in (k, v))
        places["pages"] = order.argsort().view(case.batch, -1).int()

    def run() -> Tensor:
        found = attention(q, k, v, **places)
        assert isinstance(found, Tensor)
        return found

    return _Captured.of(run) if case.captured else run


def _paged(x: Tensor, page: int, order: Tensor) -> Tensor:
    """Keys ``[batch, groups, n, d]`` as pages ``[pages, page, groups, d]``: page ``p`` holds the ``order[p]``-th."""
    return x.transpose(1, 2).flatten(0, 1).unflatten(0, (-1, page))[order].contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    """The same work as a CUDA graph.  Tensors that a graph reads are not held by it, but by ``run``."""

    run: Run
    graph: torch.cuda.CUDAGraph
    out: Tensor

    @classmethod
    def of(cls, run: Run) -> _Captured:
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = run()
        return cls(run=run, graph=graph, out=out)

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.out


def _flex(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Run:
    start = case.n - case.nq

    def mod(b: Tensor, h: Tensor, at: Tensor, k: Tensor) -> Tensor:
        return _kept(case, at + start, k)

    mask = None if case.pattern == "full" else create_block_mask(mod, None, None, case.nq, case.n, device="cuda")
    compiled = torch.compile(flex_attention)

    def run() -> Tensor:
        found = compiled(q, k, v, block_mask=mask, enable_gqa=case.heads != case.groups)
        assert isinstance(found, Tensor)
        return found

    return run


def _kept(case: Case, q: Tensor, k: Tensor) -> Tensor:
    """The pattern once more, by hand."""
    given = case.parameters
    found: Tensor
    match case.pattern:
        case "full":
            found = (q >= 0) & (k >= 0)
        case "causal":
            found = k <= q
        case "streaming":
            found = (k <= q) & ((q - k < given["window"]) | (k < given["sinks"]))
        case "dilated":
            found = (k <= q) & (q - k < given["span"]) & ((q - k) % given["dilation"] == 0)
        case "strided":
            found = (k <= q) & ((q - k < given["local"]) | ((q - k) % given["stride"] == 0))
        case _:
            raise ValueError(case.pattern)
    return found


def _mask(case: Case, length: int) -> Tensor:
    """Which pairs a sequence of this length keeps, ``[nq, n]``."""
    at, keys = torch.arange(case.nq, device="cuda")[:, None], torch.arange(case.n, device="cuda")
    return _kept(case, at + length - case.nq, keys) & (keys < length)


def _error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, masks: Sequence[Tensor]) -> float:
    """The largest relative error of a head of a sequence against float64."""
    worst = 0.0
    members = q.shape[1] // k.shape[1]
    for row, mask in enumerate(masks):
        for group in range(k.shape[1]):
            heads = slice(group * members, (group + 1) * members)
            keys, values = k[row, group].double(), v[row, group].double()
            logits = q[row, heads].double() @ keys.T / math.sqrt(q.shape[3])
            expected = torch.softmax(logits.masked_fill(~mask, -math.inf), -1) @ values
            errors = (out[row, heads].double() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
            worst = max(worst, float(errors.nan_to_num(math.inf).max()))
    return worst


def _time(run: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))


if __name__ == "__main__":
    main()
