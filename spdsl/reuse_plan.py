"""Which layers of a model attend to everything, and which read what the last such layer has chosen.

From: numbers measured layer by layer.  To: for each number of full layers the plan that is estimated to lose least.
Measuring, and what choosing and reading mean, are in `spdsl.reuse_search`.

A plan is a set of full layers that holds layer 0.  Every other layer reads from its *source*, the nearest full layer
before it, so that one choice at a time is alive.  Its loss is estimated as the sum, over the layers that read, of what
each loses with its source alone; `best_plans` minimises that sum, and of equal ones the attention that is not read, by
dynamic programming over the last full layer: O(layers³).  Interactions between layers are left out, so a plan is
measured before it is believed.  After HyLRA (2026), which plans with the same two measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from spdsl.diagnostics import SpatError, error

Made = TypeVar("Made")

LEAST_MISSED = 1e-4
"""Less attention than this is not told apart from none: shares are sums of as many exponentials as there are keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A layer that could read.

    Args:
        lost: loss of the model in nats a token when this layer alone reads what the layer before it has chosen, less
            the loss when all are full.
        held: how much of the layer's attention lies in what each earlier layer has chosen, ``[layers before it]``,
            in 0..1: the mean over heads and queries.
    """

    lost: float
    held: tuple[float, ...]

    def missed(self, source: int) -> float:
        """The share of attention that is not read."""
        return max(LEAST_MISSED, 1 - self.held[source])

    def estimate(self, source: int) -> float:
        """Nats a token that are lost by reading from a layer: what was measured, in proportion to what is missed."""
        return max(0.0, self.lost) * self.missed(source) / self.missed(len(self.held) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusePlan:
    """One answer: ``full[layer]``, and the loss that is estimated for it, in nats a token."""

    full: tuple[bool, ...]
    estimated: float

    @property
    def sources(self) -> tuple[int, ...]:
        """The layer whose choice each layer reads; a full one has itself."""
        found: list[int] = []
        for layer, full in enumerate(self.full):
            found.append(layer if full else found[-1])
        return tuple(found)

    @property
    def reading(self) -> int:
        """How many layers read."""
        return len(self.full) - sum(self.full)

    def patterns(self, chooses: Made, reads: Made) -> list[Made]:
        """What `spdsl.models.use` takes: one pattern for full layers, one for those that read."""
        return [chooses if full else reads for full in self.full]

    def as_dict(self) -> dict[str, object]:
        """The plan for `--json`."""
        return asdict(self) | {"sources": self.sources, "reading": self.reading}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a model loses when its layers read, each alone.

    Args:
        dense: loss with all layers full, nats a token.
        held: for layers 1, 2, … the share of attention in what each earlier layer has chosen.
        lost: for layers 1, 2, … as far as they were measured, the loss when the layer reads what the one before it has
            chosen, less ``dense``.
        kept: pairs that a reading layer keeps over those of a full one.
        list_bytes: what a choice takes as lists.
        bool_bytes: what the same choice would take as bools.
    """

    dense: float
    held: tuple[tuple[float, ...], ...]
    lost: tuple[float, ...]
    kept: float
    list_bytes: int
    bool_bytes: int

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The layers that were measured, from 1 on."""
        pairs = zip(self.lost, self.held[: len(self.lost)], strict=True)
        return tuple(Reader(lost=lost, held=held) for lost, held in pairs)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Measured:
        """From JSON.

        Raises:
            SpatError: what is no record of a measurement (SP644).
        """
        try:
            held = tuple(tuple(float(share) for share in row) for row in record["held"])
            lost = tuple(float(each) for each in record["lost"])
            sizes = {name: int(record[name]) for name in ("list_bytes", "bool_bytes")}
            found = cls(dense=float(record["dense"]), held=held, lost=lost, kept=float(record["kept"]), **sizes)
        except (KeyError, TypeError, ValueError) as mistake:
            raise _no_record(f"{type(mistake).__name__}: {mistake}") from None
        if [len(row) for row in held] != list(range(1, len(held) + 1)) or len(lost) > len(held):
            raise _no_record(f"{len(held)} layers with {[len(row) for row in held]} shares, {len(lost)} losses")
        if not all(math.isfinite(each) for each in (*lost, found.dense)):
            raise _no_record("numbers that are not finite")
        shares = (found.kept, *(share for row in held for share in row))
        # Shares are sums of many numbers of 32 bits.
        if not all(0 <= share <= 1 + LEAST_MISSED for share in shares):
            raise _no_record("shares that are not between 0 and 1")
        return found


def _no_record(found: str) -> SpatError:
    return error(
        "SP644", f"this is no measurement of layers: {found}", help="give what `spdsl reuse --measured` has written"
    )


def best_plans(readers: Sequence[Reader]) -> tuple[ReusePlan, ...]:
    """For 1, 2, … full layers the plan that is estimated to lose least.

    Args:
        readers: layers 1, 2, … of the model; layer 0 has nothing to read.
    """
    count = len(readers) + 1
    spans = _spans(readers)
    # best[last]: the least loss of the layers before `last`, the last full one, and the full layers up to there.
    best: dict[int, tuple[tuple[float, float], tuple[int, ...]]] = {0: ((0.0, 0.0), (0,))}
    plans = []
    for _ in range(count):
        (lost, _), chosen = min((_plus(cost, spans[last][count]), full) for last, (cost, full) in best.items())
        plans.append(ReusePlan(full=tuple(layer in chosen for layer in range(count)), estimated=lost))
        best = {
            after: min(
                (_plus(cost, spans[last][after]), (*full, after)) for last, (cost, full) in best.items() if last < after
            )
            for after in range(min(best) + 1, count)
        }
    return tuple(plans)


def fewest_full(plans: Sequence[ReusePlan], within: float) -> ReusePlan:
    """The first of some plans whose perplexity is estimated to grow by no more than a share ``within``.

    Plans are those of `best_plans`, the last of which loses nothing.

    Raises:
        SpatError: a share below 0, which no plan is known to reach (SP647).
    """
    refuse_below_zero(within)
    return next(plan for plan in plans if plan.estimated <= math.log1p(within))


def refuse_below_zero(within: float) -> None:
    """Raise where perplexity would have to fall (SP647)."""
    if not within >= 0:
        found = f"perplexity that may grow by {within:g}"
        raise error("SP647", found, help="give a share of at least 0: 0.01 is one percent")


def _spans(readers: Sequence[Reader]) -> list[list[tuple[float, float]]]:
    """``[source][end]``: estimated loss, and attention missed, of the layers after a source and before an end."""
    count = len(readers) + 1
    spans = []
    for source in range(count):
        sums = [(0.0, 0.0)] * (source + 2)
        for layer in range(source + 1, count):
            reader = readers[layer - 1]
            sums.append(_plus(sums[-1], (reader.estimate(source), reader.missed(source))))
        spans.append(sums)
    return spans


def _plus(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    return one[0] + two[0], one[1] + two[1]
