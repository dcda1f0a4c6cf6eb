"""From the counts of two short calls to those of a long one: reports and predicted times.

From: reports of calls of ``short`` and ``long`` tokens, one twice as long as the other.  To: that of a call of as many
tokens as are asked for.  What grows about in proportion is carried on along the line through both counts, which is
exact where each query keeps as many keys once there are enough; what grows faster by the power that both tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from spdsl.analysis.work import Work
from spdsl.costs import KernelCost, Prediction, summed
from spdsl.explain import KernelReport, Report

LINE = 1.35
"""The largest power that is taken for a line that does not begin at 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Longer:
    """To ``n`` keys, ``nq`` queries, and ``times`` as many heads."""

    n: int
    nq: int
    times: int

    def count(self, short: int, long: int, tokens: int) -> int:
        """A count over heads, of which calls of half as many ``tokens`` and of ``tokens`` have these."""
        return self.times * self.of_one(short, long, tokens)

    def of_one(self, short: int, long: int, tokens: int) -> int:
        """A count of one program."""
        if short <= 0 or long <= short:
            return long
        power = math.log2(long / short)
        if power <= LINE:
            return long + round((long - short) * 2 * (self.n - tokens) / tokens)
        return round(long * math.pow(self.n / tokens, min(power, 2.0)))

    def report(self, short: Report, long: Report) -> Report:
        """The report of the longer call."""
        tokens = long.n
        cost = None
        if short.cost is not None and long.cost is not None:
            cost = self._prediction(short.cost, long.cost, long)
        pairs = self.count(short.pairs, long.pairs, tokens)
        kernels = _paired(short.kernels, long.kernels)
        return replace(
            long,
            heads=long.heads * self.times,
            nq=self.nq,
            n=self.n,
            pairs=min(pairs, long.batch * long.heads * self.times * self.nq * self.n),
            kernels=tuple(self._kernel(a, b, tokens) for a, b in kernels),
            stages=tuple((text, size * self.n // tokens) for text, size in long.stages),
            cost=cost,
        )

    def _kernel(self, short: KernelReport, long: KernelReport, tokens: int) -> KernelReport:
        touched = self.count(short.touched, long.touched, tokens)
        return replace(
            long,
            pairs=self.count(short.pairs, long.pairs, tokens),
            touched=touched,
            full=min(self.count(short.full, long.full, tokens), touched),
            metadata=self.count(short.metadata, long.metadata, tokens),
        )

    def _prediction(self, short: Prediction, long: Prediction, report: Report) -> Prediction:
        costs = [
            KernelCost.of(
                self._work(a.work, b.work, report.n),
                long.device,
                part=b.part,
                pairs=None if a.pairs is None or b.pairs is None else self.count(a.pairs, b.pairs, report.n),
                size=b.size * self.n // report.n * self.times,
            )
            for a, b in _paired(short.kernels, long.kernels)
        ]
        heads = report.batch * report.heads * self.times
        return summed(costs, long.device, against=long.against, heads=heads, nq=self.nq, n=self.n)

    def _work(self, short: Work, long: Work, tokens: int) -> Work:
        before = replace(
            long.before,
            searched=long.before.searched * self.n // tokens,
            bytes=long.before.bytes * self.n // tokens * self.times,
        )
        return replace(
            long,
            programs=self.count(short.programs, long.programs, tokens),
            full=self.count(short.full, long.full, tokens),
            masked=self.count(short.masked, long.masked, tokens),
            longest=self.of_one(short.longest, long.longest, tokens),
            rows=self.count(short.rows, long.rows, tokens),
            heads=long.heads * self.times,
            long=self.count(short.long, long.long, tokens),
            most=self.of_one(short.most, long.most, tokens),
            before=before,
            reads=self.count(short.reads, long.reads, tokens),
        )


T = TypeVar("T", KernelReport, KernelCost)


def _paired(short: Sequence[T], long: Sequence[T]) -> list[tuple[T, T]]:
    """Kernels of both calls; one that the shorter has not is counted as the longer has it."""
    known = {(each.kind, each.part): each for each in short}
    return [(known.get((each.kind, each.part), each), each) for each in long]
