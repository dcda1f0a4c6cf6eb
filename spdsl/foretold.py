"""How a call of a pattern with stages would be computed of queries and keys that are not there, at any length.

From: a key, sizes, and how inputs of such sizes are made.  To: a report as `spdsl.selecting` makes it of tensors.  No
score is computed at full length.  Lists that have so many keys whatever these score are drawn at random; where they
are too many, or what is chosen depends on scores, two shorter calls of the heads of one group are counted, and carried
on to the length that is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spdsl.analysis.picks import picked
from spdsl.arguments import first_query
from spdsl.costs import device_for, is_causal
from spdsl.drawn_sets import PICKS, Shapes, drawn_tables, entries_of, is_drawable, width_of
from spdsl.explain import Report, explain
from spdsl.extrapolation import Longer
from spdsl.kernels import plan_like
from spdsl.launched import launches_of
from spdsl.pipeline import bound, lives_of, softmax_key
from spdsl.runtime.evaluate import with_batch
from spdsl.runtime.lines import Lines
from spdsl.samples import Sizes, drawn, shaped
from spdsl.selecting import GraphReport, described, explain_stages, of_softmax
from spdsl.selection_costs import Selection, selection
from spdsl.selection_work import Effort, efforts
from spdsl.semantics.graph import Attention, Select, StageGraph, expressions, loads, on_side
from spdsl.semantics.nodes import BoundPattern, Expr, Index, Load
from spdsl.semantics.rewrite import children
from spdsl.semantics.titles import in_titles, titles
from spdsl.staged import in_order

NUMBERS = 1 << 23
"""Numbers of all stages that are computed for scores of a shorter call."""

NUMBERS_OF_WHOLE, PRODUCTS_OF_WHOLE = 1 << 25, 1 << 32
"""Numbers and multiply-adds of calls that are short enough to compute their scores."""

PAIRS = 32
"""Pairs that are looked at as fast as a pick is drawn."""

LOOKED_AT = 4096
"""Tokens of calls of which all pairs are looked at, at least."""

NEARLY_ALL = 0.45
"""The share of all pairs that is nearly everything of the past."""

SHORTEST = 512
"""Tokens of the shortest call that is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretelling:
    """What calls are made of: ``inputs`` makes those of some sizes; ``fixed``: the pattern says how many tokens there
    are."""

    key: str
    sizes: Sizes
    value_dim: int
    dtype: torch.dtype
    inputs: Callable[[Sizes], Mapping[str, Tensor]]
    target: str
    gpu: str | None
    seed: int
    fixed: bool

    def is_short(self) -> bool:
        """Whether all scores are computed in a moment."""
        found = self._described(self.sizes)
        return sum(each.numbers for each in found.stages) <= NUMBERS_OF_WHOLE and found.products <= PRODUCTS_OF_WHOLE

    def report(self) -> GraphReport:
        """The report.

        Raises:
            SpatError: as a call of these sizes would.
        """
        shapes, key, in_tiles = self._shapes(self.sizes)
        graph, called = shapes.graph, titles(shapes.graph)
        found, estimated = list[tuple[str, Report]](), list[str]()
        for stage in graph.attentions:
            report, how = self._softmax(shapes, key, stage, called)
            found.append((called[stage.name], of_softmax(report, stage, called)))
            estimated += [] if how is None else [f"softmax {called[stage.name]}, {how}"]
        call = replace(shapes.inputs, kernels=self.target != "cpu")
        kept = {name: size for stage in graph.attentions for name, size in self._kept(shapes, key, stage).items()}
        whole = described(shapes.pattern, call, shapes.lines, kept)
        lifetimes = self._has_lifetimes()
        makers = () if lifetimes else whole.makers
        told = replace(whole, makers=makers, tilewise=in_tiles, lifetimes=lifetimes)
        return replace(told, softmaxes=tuple(found), estimated=tuple(estimated))

    def selection(self, report: GraphReport) -> Selection | None:
        """What selecting costs beside the softmaxes of a report; None where that cannot be told without a run, or for
        no GPU."""
        if self.target == "cpu":
            return None
        device = device_for(self.target, self.gpu)
        shapes, _, _ = self._shapes(self.sizes)
        tensors = shaped(self.sizes, self.value_dim, self.dtype)
        found = launches_of(self.key, tensors, self.inputs(self.sizes), shapes.lines.q_start, device)
        if found is None:
            return None
        called = titles(shapes.graph)
        done = efforts(shapes, described(shapes.pattern, shapes.inputs, shapes.lines, {}).stages, found)

        def named(effort: Effort) -> Effort:
            return replace(effort, name=in_titles(effort.name, called).lstrip("_"))

        attention = sum(each.cost.forward for _, each in report.softmaxes if each.cost is not None)
        return selection([named(each) for each in done], device, attention, found.decided)

    def _has_lifetimes(self) -> bool:
        sizes = self.sizes
        return sizes.nq == sizes.n and lives_of(self.key, sizes.heads, sizes.groups, sizes.head_dim) is not None

    # ------------------------------------------------------------ one softmax

    def _softmax(
        self, shapes: Shapes, key: str, stage: Attention, called: Mapping[str, str]
    ) -> tuple[Report, str | None]:
        """A softmax, and how its counts were found where they are not those of any call of these sizes."""
        softmax = _bound(key, stage, shapes.q, shapes.k)
        if self._has_lifetimes() or not is_drawable(softmax, stage):
            return self._by_scores(stage)
        lists = ", ".join(
            f"`{called.get(table.name, table.name)}`" for table in softmax.tables if table.made and table.listed
        )
        looks = self._looks(shapes, key, stage)
        if entries_of(softmax, shapes) + self._pairs(self.sizes, looks) <= PICKS:
            how = f"as {lists} would be of independent scores" if lists else None
            return self._drawn(shapes, key, stage), how
        one, times = self._of_group(self.sizes)
        tokens, least = self.sizes.n, min(SHORTEST * 64, 4 * _largest(shapes.pattern))
        least = min(least, LOOKED_AT) if looks else least
        while tokens > least:
            sizes = self._shorter(one, tokens)
            if entries_of(softmax, self._shapes(sizes)[0]) + self._pairs(sizes, looks) <= PICKS:
                break
            tokens = 1 << ((tokens - 1).bit_length() - 1)
        longer, how = (
            Longer(n=self.sizes.n, nq=self.sizes.nq, times=times),
            f"as {lists} would be of independent scores, counted for",
        )
        if tokens == self.sizes.n:
            whole = self._drawn_at(one, stage)
            return longer.report(whole, whole), f"{how} the heads of one group"
        short, long = (self._drawn_at(self._shorter(one, n), stage) for n in (tokens // 2, tokens))
        return longer.report(short, long), f"{how} {tokens // 2:,} and {tokens:,} tokens and carried on"

    def _looks(self, shapes: Shapes, key: str, stage: Attention) -> bool:
        """Whether what stages choose is looked at pair by pair, as where it is no part of a union of its own."""
        made = plan_like(softmax_key(key, stage.name), *shapes.of(stage), self.target).plan
        chosen = [(part, picked(part.keep, part.tables)) for part in made.parts]
        return any(
            (found is None or bool(found.runs))
            and any(table.listed and table.name in loads(part.keep) for table in part.tables)
            for part, found in chosen
        )

    @staticmethod
    def _pairs(sizes: Sizes, looks: bool) -> int:
        """How long it takes to look at all pairs, in picks."""
        return sizes.heads * sizes.nq * sizes.n // PAIRS if looks else 0

    def _drawn_at(self, sizes: Sizes, stage: Attention) -> Report:
        shapes, key, _ = self._shapes(sizes)
        return self._drawn(shapes, key, stage)

    def _drawn(self, shapes: Shapes, key: str, stage: Attention) -> Report:
        """A softmax over sets that are drawn at random."""
        softmax = _bound(key, stage, shapes.q, shapes.k)
        tables = drawn_tables(softmax, shapes, causal=is_causal(softmax), seed=self.seed)
        start = shapes.lines.q_start if stage.rows == "q" else 0
        own = softmax_key(key, stage.name)
        return explain(own, *shapes.of(stage), tables, self.target, gpu=self.gpu, q_start=start)

    def _by_scores(self, stage: Attention) -> tuple[Report, str]:
        """A softmax over what shorter calls of random queries and keys select."""
        if self.fixed:
            return self._selected(self.sizes, stage), "as random queries and keys select"
        one, times = self._of_group(self.sizes)
        tokens, least = 1 << (self.sizes.n.bit_length() - 1), SHORTEST
        if self._has_lifetimes():  # one number for each key, and no scores
            least = 4 * _largest(bound(self.key, one.heads, one.groups, one.head_dim))
        while tokens > least and self._numbers(self._shorter(one, tokens)) > NUMBERS:
            tokens //= 2
        short, long = (self._selected(self._shorter(one, n), stage) for n in (tokens // 2, tokens))
        lengths = f"{tokens // 2:,} and {tokens:,}"
        how = f"whose size depends on scores, as {lengths} random queries and keys select, carried on"
        if long.kept > NEARLY_ALL:
            how += "; they select nearly everything, and of more tokens they may choose far less"
        return Longer(n=self.sizes.n, nq=self.sizes.nq, times=times).report(short, long), how

    def _selected(self, sizes: Sizes, stage: Attention) -> Report:
        tensors = drawn(sizes, self.value_dim, self.dtype, self.seed)
        report = explain_stages(self.key, *tensors, self.inputs(sizes), self.target)
        shapes, _, _ = self._shapes(sizes)
        return dict(report.softmaxes)[titles(shapes.graph)[stage.name]]

    # ------------------------------------------------------------ sizes

    def _shapes(self, sizes: Sizes) -> tuple[Shapes, str, bool]:
        """A call of these sizes, its key, and whether tokens are in the order of tiles."""
        q, k, v = shaped(sizes, self.value_dim, self.dtype)
        given = dict(self.inputs(sizes))
        start = first_query(bound(self.key, sizes.heads, sizes.groups, sizes.head_dim).attend, sizes.nq, sizes.n)
        key, (q, k, v), tables, order = in_order(self.key, q, k, v, given, None, start)
        pattern = bound(key, sizes.heads, sizes.groups, sizes.head_dim)
        lines = Lines(
            pattern=pattern,
            tables={table.name: with_batch(table, tables[table.name]) for table in pattern.tables},
            batch=sizes.batch,
            nq=q.shape[2],
            n=k.shape[2],
            q_start=start,
            device=torch.device("cpu"),
        )
        shapes = Shapes(pattern=pattern, q=q, k=k, v=v, tables=dict(tables), lines=lines)
        return shapes, key, order is not None

    def _of_group(self, sizes: Sizes) -> tuple[Sizes, int]:
        """The heads of one group, and how often they stand for all; all heads where these are not alike."""
        pattern = bound(self.key, sizes.heads, sizes.groups, sizes.head_dim)
        if not _alike(pattern, json.loads(self.key)["text"]):
            return sizes, 1
        return replace(sizes, heads=sizes.heads // sizes.groups, groups=1), sizes.groups

    def _shorter(self, sizes: Sizes, tokens: int) -> Sizes:
        """A call with so many keys, and the same share of queries."""
        return replace(sizes, n=tokens, nq=max(1, self.sizes.nq * tokens // self.sizes.n))

    def _numbers(self, sizes: Sizes) -> int:
        return sum(each.numbers for each in self._described(sizes).stages)

    def _described(self, sizes: Sizes) -> GraphReport:
        shapes, _, _ = self._shapes(sizes)
        return described(shapes.pattern, shapes.inputs, shapes.lines, {})

    def _kept(self, shapes: Shapes, key: str, stage: Attention) -> dict[str, int]:
        """The bytes of the lists of a softmax."""
        found = {}
        for table in _bound(key, stage, shapes.q, shapes.k).tables:
            width = width_of(table)
            if table.made and width is not None:
                made = shapes.graph.stage(table.name)
                rows = 4 * shapes.lines.batch * min(width, shapes.lines.size(str(on_side(made.axes, "k"))))
                for axis in made.axes:
                    rows *= 1 if axis == on_side(made.axes, "k") else shapes.lines.size(axis)
                found[table.name] = rows
        return found


def _bound(key: str, stage: Attention, q: Tensor, k: Tensor) -> BoundPattern:
    return bound(softmax_key(key, stage.name), q.shape[1], k.shape[1], q.shape[3])


def _largest(pattern: BoundPattern) -> int:
    """A length at which the last parameter has its say."""
    values = [value for _, given in pattern.parameters for value in (given if isinstance(given, tuple) else (given,))]
    return max((each for each in values if type(each) is int), default=SHORTEST)


def _alike(pattern: BoundPattern, text: str) -> bool:
    """Whether the heads of each group do as those of any other."""
    graph = pattern.graph
    assert graph is not None
    if re.search(r"\b(heads|groups)\b", text) or any(isinstance(each, Select) and each.also for each in graph.stages):
        return False
    return not any(map(_tells_heads, _all(graph)))


def _all(graph: StageGraph) -> list[Expr]:
    return list(expressions(graph))


def _tells_heads(expr: Expr) -> bool:
    """Whether an expression has the number of a head but to read what belongs to it."""
    if isinstance(expr, Load):
        return any(_tells_heads(each) for each in expr.indices if each not in _HEADS)
    return expr in _HEADS or any(map(_tells_heads, children(expr)))


_HEADS = (Index(name="h"), Index(name="g"))
