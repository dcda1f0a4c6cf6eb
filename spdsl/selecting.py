"""How a call of a pattern with stages is computed: what each stage costs, and how each softmax walks.

From: a key and tensors.  To: a report.  Stages run, since they decide what the softmaxes visit; attention does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from spdsl.arguments import first_query
from spdsl.costs import told
from spdsl.explain import KernelReport, Report, call_like, explain
from spdsl.pipeline import bound, softmax_key
from spdsl.runtime import graphs
from spdsl.runtime.calls import Call
from spdsl.runtime.checks import check_tensors
from spdsl.runtime.lines import Lines
from spdsl.runtime.narrowed import outer_of
from spdsl.runtime.probes import rows_looked_at
from spdsl.selection_costs import Selection
from spdsl.semantics.graph import (
    Attention,
    Descend,
    Export,
    Merge,
    Pool,
    Score,
    Select,
    Softmax,
    Stage,
    StageGraph,
    is_free,
    loads,
    on_side,
    parts,
    side_of,
)
from spdsl.semantics.nodes import BoundPattern, Const, Load
from spdsl.semantics.show import stage_text
from spdsl.semantics.titles import as_written, in_titles, titles
from spdsl.staged import in_order, with_lifetimes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """A stage: its text, how many numbers it makes, and the products it takes for scores.

    ``bytes`` is what is kept of it: nothing of a stage that is made a few rows at a time.
    """

    text: str
    numbers: int
    products: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export takes: its bytes as it stands, and, of a set of pairs, those of its lists.

    ``listed`` is None where each row has as many keys as it turns out, at four bytes each.
    """

    name: str
    axes: tuple[str, ...]
    bytes: int
    listed: int | None
    is_set: bool

    def text(self) -> str:
        """The report as a line."""
        found = f"export {self.name}[{', '.join(self.axes)}]: {self.bytes:,} bytes"
        if not self.is_set:
            return found
        return f"{found} as bools, {'4 for each pair' if self.listed is None else f'{self.listed:,}'} as lists"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphReport:
    """What `Attention.explain` tells about a pattern with stages; ``softmaxes`` by what the pattern calls them.

    ``makers`` says how each set of pairs is made, by what the pattern calls it; ``tilewise``: tokens are put in the
    order of their tiles before, and the output is put back; ``lifetimes``: of the keys that are chosen it is found
    until which query they are, and which live for a run of queries.  ``estimated`` says what of the softmaxes was not
    counted for these sizes and tensors, and how it was found instead; ``selection`` what it takes to select.
    """

    pattern: str
    stages: tuple[StageReport, ...]
    makers: tuple[tuple[str, str], ...]
    softmaxes: tuple[tuple[str, Report], ...]
    head_dim: int
    exports: tuple[ExportReport, ...] = ()
    tilewise: bool = False
    lifetimes: bool = False
    estimated: tuple[str, ...] = ()
    selection: Selection | None = None

    @property
    def products(self) -> int:
        """Multiplications and additions of all scores."""
        return sum(stage.products for stage in self.stages)

    @property
    def attended(self) -> int:
        """Those of the forward kernels: two products for each pair that is computed."""
        kernels = (kernel for _, report in self.softmaxes for kernel in report.kernels if kernel.kind == "forward")
        return sum(2 * self.head_dim * kernel.computed for kernel in kernels)

    @property
    def share(self) -> float:
        """The share of the scores in all products."""
        return self.products / max(1, self.products + self.attended)

    def as_dict(self) -> dict[str, object]:
        """The report for `--json`."""
        found = asdict(replace(self, selection=None)) | {
            "products": self.products,
            "attended": self.attended,
            "share": self.share,
        }
        found |= {"makers": dict(self.makers)}
        found |= {"selection": None if self.selection is None else self.selection.as_dict()}
        return found | {"softmaxes": {name: report.as_dict() for name, report in self.softmaxes}}

    def text(self) -> str:
        """The report as lines to read."""
        lines = [f"{self.pattern}: stages that run before attention"]
        lines += ["  over tokens in the order of their tiles, which are blocks of them"] if self.tilewise else []
        lines += ["  keys are kept from their own query on until one that is found for each"] if self.lifetimes else []
        for stage in self.stages:
            cost = "1 number" if stage.numbers == 1 else f"{stage.numbers:,} numbers"
            cost += f", {stage.products:,} multiply-adds" if stage.products else ""
            cost += f", {stage.bytes:,} bytes kept" if stage.bytes else ""
            lines.append(f"  {stage.text}: {cost}")
        lines += [f"{name} is made {how}" for name, how in self.makers]
        lines.append(f"scores are {self.share:.1%} of the multiply-adds of the forward pass")
        lines += [each.text() for each in self.exports]
        lines += [] if self.selection is None else self.selection.lines(told)
        lines += [f"estimated: {each}" for each in self.estimated]
        for name, report in self.softmaxes:
            lines += [f"softmax {name}", *(f"  {line}" for line in report.text().splitlines())]
        return "\n".join(lines)


def explain_stages(
    key: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Mapping[str, Tensor],
    target: str | None = None,
    *,
    gpu: str | None = None,
) -> GraphReport:
    """Count what the stages of a pattern make of these tensors, and what its softmaxes then visit.

    Raises:
        SpatError: as a call with these tensors would.
    """
    check_tensors(q, k, v)
    start = first_query(bound(key, q.shape[1], k.shape[1], q.shape[3]).attend, q.shape[2], k.shape[2])
    key, (q, k, v), tables, order = in_order(key, q, k, v, tables, None, start)
    chosen, (key, tables) = key, with_lifetimes(key, q, k, v, tables, None, start)
    pattern = bound(key, q.shape[1], k.shape[1], q.shape[3])
    assert pattern.graph is not None
    on_gpu = q.device.type == "cuda" if target is None else target != "cpu"
    call = graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=start)
    called = titles(pattern.graph)
    softmaxes = []
    kept: dict[str, int] = {}
    lines: Lines | None = None
    for stage in pattern.graph.attentions:
        made = graphs.operands(pattern, stage, call)
        lines = made.lines
        kept |= {name: table.nbytes for name, table in made.tables.items() if name in made.stages}
        own = softmax_key(key, stage.name)
        tables = made.tables
        if stage.member is not None:
            # The first member stands for all.
            tables = graphs.of_member(made, stage.member, 0)
        report = explain(own, made.q, made.k, made.v, tables, target, gpu=gpu, q_start=made.q_start)
        softmaxes.append((called[stage.name], of_softmax(report, stage, called)))
    assert lines is not None
    found = described(pattern, replace(call, kernels=on_gpu), lines, kept)
    return replace(found, softmaxes=tuple(softmaxes), tilewise=order is not None, lifetimes=key != chosen)


def of_softmax(report: Report, stage: Attention, called: Mapping[str, str]) -> Report:
    """The report of a softmax, which calls it and all stages what the pattern does."""

    def words(kernel: KernelReport) -> KernelReport:
        walk, notes = (tuple(in_titles(line, called) for line in lines) for lines in (kernel.walk, kernel.notes))
        return replace(kernel, walk=walk, notes=notes, warps=in_titles(kernel.warps, called))

    return replace(
        report,
        pattern=called[stage.name],
        kernels=tuple(map(words, report.kernels)),
        stages=tuple((in_titles(text, called), size) for text, size in report.stages),
        sets=tuple(in_titles(text, called) for text in report.sets),
    )


def softmax_calls(
    key: str, q: Tensor, k: Tensor, v: Tensor, tables: Mapping[str, Tensor], target: str
) -> tuple[list[tuple[str, Call]], dict[str, str]]:
    """The softmaxes of a pattern with stages over what these tensors select, by what the pattern calls them, and the
    titles of its stages; of softmaxes for each member of an axis the first.

    Raises:
        SpatError: as a call with these tensors would.
    """
    check_tensors(q, k, v)
    start = first_query(bound(key, q.shape[1], k.shape[1], q.shape[3]).attend, q.shape[2], k.shape[2])
    key, (q, k, v), tables, _ = in_order(key, q, k, v, tables, None, start)
    key, tables = with_lifetimes(key, q, k, v, tables, None, start)
    pattern = bound(key, q.shape[1], k.shape[1], q.shape[3])
    assert pattern.graph is not None
    call, called = graphs.Inputs(q=q, k=k, v=v, tables=tables, q_start=start), titles(pattern.graph)
    found = []
    for stage in pattern.graph.attentions:
        made = graphs.operands(pattern, stage, call)
        own = made.tables if stage.member is None else graphs.of_member(made, stage.member, 0)
        like = call_like(softmax_key(key, stage.name), made.q, made.k, made.v, own, target, q_start=made.q_start)
        found.append((called[stage.name], like))
    return found, called


def described(pattern: BoundPattern, call: graphs.Inputs, lines: Lines, kept: Mapping[str, int]) -> GraphReport:
    """What is known of stages by the shapes of a call, without softmaxes; ``kept`` are the bytes of what is kept."""
    graph = pattern.graph
    assert graph is not None
    called = titles(graph)
    return GraphReport(
        pattern=pattern.name,
        stages=tuple(
            _stage(graph, stage, stage_text(shown), lines, kept.get(stage.name, 0))
            for stage, shown in zip(graph.stages, as_written(graph), strict=True)
            if not isinstance(stage, Attention | Merge)
        ),
        makers=tuple(
            (called.get(name, name), in_titles(how, called)) for name, how in graphs.makers(pattern, call).items()
        ),
        softmaxes=(),
        head_dim=call.q.shape[3],
        exports=tuple(_export(graph, each, lines) for each in graph.exports),
    )


def _export(graph: StageGraph, exported: Export, lines: Lines) -> ExportReport:
    sizes = [lines.size(axis) for axis in exported.axes]
    is_set = exported.value.dtype == "bool" and side_of(exported.axes[-1]) == "k" and len(sizes) > 1
    width = None
    match exported.value:
        case Load(table=name):
            match next((stage for stage in graph.stages if stage.name == name), None):
                case Select(by="count", amount=Const(value=count), over=over, also=()) if over == exported.axes[-1]:
                    width = min(int(count), lines.size(over))
                case _:
                    pass
        case _:
            pass
    each = {"bool": 1, "int": 8, "float": 4}[exported.value.dtype]
    listed = None if width is None else 4 * lines.batch * math.prod(sizes[:-1]) * width
    return ExportReport(
        name=exported.name,
        axes=exported.axes,
        bytes=each * lines.batch * math.prod(sizes),
        listed=listed,
        is_set=is_set,
    )


def _keys(graph: StageGraph, lines: Lines, stage: Stage) -> int:
    """How many keys of a row are looked at: all, or candidates of an earlier selection, and what searches meet."""
    own = on_side(stage.axes, "k")
    every = 1 if own is None else lines.size(own)
    found = 0
    for reader in graph.stages:
        if stage.name not in frozenset[str]().union(*(loads(part) for part in parts(reader))):
            continue
        match reader:
            case Select() if (outer := outer_of({each.name: each for each in graph.stages}, reader)) is not None:
                above = graph.stage(outer)
                coarse = on_side(above.axes, "k")
                assert coarse is not None
                width = lines.size(coarse)
                if isinstance(above, Select) and isinstance(above.amount, Const):
                    width = min(width, int(above.amount.value))
                found += width * -(-every // max(1, lines.size(coarse)))
            case Descend(per=per) if own == "k":
                halvings = max(0, -(-every // max(1, lines.size(per))) - 1).bit_length()
                found += _keys(graph, lines, reader) * (2 * halvings + 1)
            case Pool(over="q", per=str()):
                found += _keys(graph, lines, reader)
            case _:
                return every
    return min(every, found) if found else every


def _stage(graph: StageGraph, stage: Stage, text: str, lines: Lines, kept: int) -> StageReport:
    numbers = lines.batch * math.prod(lines.size(axis) for axis in stage.axes)
    if isinstance(stage, Score | Softmax) and "q" in stage.axes and lines.nq:
        # Where a probe reads it, no others are computed.
        numbers = numbers // lines.nq * len(rows_looked_at(graph, stage, lines.nq, lines.n, lines.q_start))
    products = 0
    if isinstance(stage, Score):
        own = on_side(stage.axes, "k")
        numbers = numbers if own is None else numbers // max(1, lines.size(own)) * _keys(graph, lines, stage)
        products = numbers * lines.size(stage.over)
    of_keys = all(side_of(axis) != "q" for axis in stage.axes) or any(map(is_free, stage.axes))
    whole = isinstance(stage, Pool) and of_keys and bool(loads(parts(stage)[0]))
    return StageReport(text=text, numbers=numbers, products=products, bytes=kept or (4 * numbers if whole else 0))
