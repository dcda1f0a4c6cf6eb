"""What a call costs: the work of its kernels counted, their times predicted, and dense attention beside them.

From a call and a `DeviceProfile` to a `Prediction`.  Nothing is computed but counts, and those on the device of the
call's tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from spdsl import walks
from spdsl.analysis.claims import decide
from spdsl.analysis.cost import Estimate, delta_seconds, dense_seconds, estimate
from spdsl.analysis.device import DeviceProfile, profile_for
from spdsl.analysis.few import SCARCE
from spdsl.analysis.pairs import Subject
from spdsl.analysis.plans import KernelPlan, Kind
from spdsl.analysis.sharing import TURNS
from spdsl.analysis.tiles import SlotWalk
from spdsl.analysis.work import Before, Work, work_of
from spdsl.analysis.worker import bounded
from spdsl.cache.store import store
from spdsl.runtime.calls import Call
from spdsl.runtime.evenness import is_even
from spdsl.runtime.parts import parts_of
from spdsl.runtime.split import long_rows
from spdsl.runtime.tile_grid import TileGrid
from spdsl.semantics.nodes import BoundPattern

if TYPE_CHECKING:
    import sympy

Against: TypeAlias = Literal["causal", "full"]

Verdict: TypeAlias = Literal["faster", "about as fast", "slower"]

CLOSE = 0.07
"""Differences of predicted times below which the model does not say which is faster: by what is right most often for
the masks on which it was fitted."""

ROW_NUMBERS = 2
"""Lists with a number for each row that the fused kernel copies: the LSE, and the sums of dO·O."""

_SECONDS = 2.0
"""How long isl may take to prove that a pattern is causal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """One kernel of a plan: what it does, and how long that takes.  ``part`` is where its plan stands in a union.

    ``pairs`` are those that it has to compute, if that is known, and ``size`` the bytes that it reads and writes at
    least.
    """

    kind: Kind
    part: int
    work: Work
    estimate: Estimate
    pairs: int | None
    size: int

    @staticmethod
    def of(work: Work, device: DeviceProfile, *, part: int, pairs: int | None, size: int) -> KernelCost:
        """The cost of this work."""
        found = estimate(work, device, pairs=pairs, size=size)
        return KernelCost(kind=work.kind, part=part, work=work, estimate=found, pairs=pairs, size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Times of a call on ``device``, in seconds, beside those of dense attention over the same lengths.

    ``backward`` is that of the kernels that run by default, ``before`` what runs ahead of them.  ``against`` is the
    dense attention that is compared with: causal where the pattern is.
    """

    device: DeviceProfile
    kernels: tuple[KernelCost, ...]
    forward: float
    backward: float
    before: float
    against: Against
    dense_forward: float
    dense_backward: float

    @property
    def floor(self) -> float:
        """The least time of a forward pass: the pairs kept at the rate of matrix products, or memory read once."""
        return sum(each.estimate.floor for each in self.kernels if each.kind == "forward")

    @property
    def verdict(self) -> dict[str, Verdict]:
        """What the model says of the kernels beside dense attention."""
        return {
            "forward": verdict_of(self.dense_forward / self.forward),
            "backward": verdict_of(self.dense_backward / self.backward),
        }

    def as_dict(self) -> dict[str, Any]:
        """The prediction for `--json`; times in seconds."""
        return {
            "device": self.device.name,
            "origin": self.device.origin,
            "forward": self.forward,
            "backward": self.backward,
            "floor": self.floor,
            "dense": {
                "mask": self.against,
                "forward": self.dense_forward,
                "backward": self.dense_backward,
                "verdict": self.verdict,
            },
            "kernels": [
                {
                    "kind": each.kind,
                    "part": each.part,
                    "seconds": each.estimate.seconds,
                    "floor": each.estimate.floor,
                    "bound": each.estimate.bound,
                    "interpolated": each.estimate.near,
                    "formula": str(each.estimate.formula),
                    **{each.symbol: each.count for each in each.estimate.terms},
                }
                for each in self.kernels
            ],
        }

    def lines(self) -> list[str]:
        """The prediction to read."""
        origin = {"measured": "measured on this machine", "shipped": "as shipped"}.get(
            self.device.origin, "derived from its data sheet"
        )
        times = f"forward {told(self.forward)}, backward {told(self.backward)}"
        found = [f"predicted for {self.device.name}, costs {origin}: {times}"]
        found += [line for each in self.kernels for line in _kernel_lines(each)]
        forward, backward = (self.dense_forward / self.forward, self.dense_backward / self.backward)
        found.append(
            f"{self.against} dense attention: forward {told(self.dense_forward)}, "
            f"backward {told(self.dense_backward)}; "
            f"expected to be {forward:.2f} and {backward:.2f} times as fast as that"
        )
        for verdict, words in (("slower", "faster"), ("about as fast", "about as fast")):
            which = [
                name for name, times in (("forward", forward), ("backward", backward)) if verdict_of(times) == verdict
            ]
            if which:
                found.append(
                    f"dense attention with {_mask(self.against)} is expected to be {words} {' and '.join(which)}"
                )
        return found


def verdict_of(times: float) -> Verdict:
    """What the model says of kernels that it expects to be so many ``times`` faster than dense attention."""
    return "faster" if times > 1 + CLOSE else "slower" if times < 1 - CLOSE else "about as fast"


def predict(
    call: Call, device: DeviceProfile, *, pairs: int | None = None, against: Against | None = None
) -> Prediction:
    """The times of a call's kernels; ``pairs`` are those that it keeps, for the floor."""
    kernels = []
    for part in parts_of(call, lambda _: ()):
        for kernel in part.plan.kernels:
            share = pairs if not call.plan.more else None
            size = _bytes(part, kernel)
            kernels.append(KernelCost.of(work(part, kernel), device, part=part.plan.place, pairs=share, size=size))
    against = against or ("causal" if is_causal(call.plan.problem.pattern) else "full")
    batch, heads, nq, _ = call.q.shape
    return summed(kernels, device, against=against, heads=batch * heads, nq=nq, n=call.keys)


def summed(
    kernels: Sequence[KernelCost], device: DeviceProfile, *, against: Against, heads: int, nq: int, n: int
) -> Prediction:
    """The times of a call by those of its kernels; ``heads`` are those of all sequences."""
    first = kernels[0].work
    dense = dense_seconds(heads, nq, n, first.head_dim, first.value_dim, device, causal=against == "causal")
    fused = {each.part for each in kernels if each.kind == "fused"}
    backward = [each for each in kernels if each.kind in ({"fused"} if each.part in fused else {"dq", "dkdv"})]
    before = delta_seconds(first, device)
    return Prediction(
        device=device,
        kernels=tuple(kernels),
        forward=sum(each.estimate.seconds for each in kernels if each.kind == "forward"),
        backward=before + sum(each.estimate.seconds for each in backward),
        before=before,
        against=against,
        dense_forward=dense[0],
        dense_backward=dense[1],
    )


def device_for(target: str, name: str | None = None) -> DeviceProfile:
    """The profile of a GPU: measured on this machine, shipped, or derived.

    Raises:
        SpatError: nothing is known of it (SP520).
    """
    found = []
    for each in store().results.all("device"):
        with suppress(KeyError, TypeError):  # of another version, which measured other things
            found.append(DeviceProfile.of(each.value))
    return profile_for(name, target, found)


def is_causal(pattern: BoundPattern) -> bool:
    """Whether no query keeps a later key, as far as isl can prove it in a moment."""
    found = bounded(decide, {"claim": "causal", "subjects": [Subject.of(pattern)]}, seconds=_SECONDS)
    return found is not None and found.verdict == "proven"


def work(call: Call, kernel: KernelPlan) -> Work:
    """What ``kernel`` does in ``call``; the counts are exact."""
    visits = walks.visits(call, kernel)
    batch, heads, nq, _ = call.q.shape
    even = kernel.persistent and is_even(call, kernel)
    owners = call.k.shape[1] if kernel.by == "key" else heads
    programs = _tiles(call, kernel) * owners * batch
    longest = visits.longest * (heads // owners)
    long = most = 0
    if kernel.splits and isinstance(kernel.walk, SlotWalk) and kernel.walk.long is None and not kernel.few:
        # All rows are cut, into parts for all multiprocessors.
        programs = max(programs, SCARCE)
        longest = min(longest, visits.touched // programs + TURNS)
    elif kernel.splits:
        # Rows much longer than the others are cut into parts.
        longest = min(longest, 2 * visits.touched // max(1, programs) + TURNS)
        if isinstance(kernel.walk, SlotWalk) and kernel.walk.long is not None:
            _, long, most = long_rows(call, kernel, kernel.walk.long, _tiles(call, kernel))
            long *= owners * batch
    return work_of(
        call.plan,
        kernel,
        programs=programs,
        full=visits.full,
        touched=visits.touched,
        longest=longest,
        rows=nq * heads * batch,
        heads=owners * batch,
        long=long,
        most=most,
        even=even,
        queued=kernel.persistent and not even,
        before=_before(call, kernel),
        reads=_reads(call, kernel, visits.touched) if kernel.few else 0,
    )


def _reads(call: Call, kernel: KernelPlan, touched: int) -> int:
    """Bytes of the keys and values of ``touched`` tiles, which heads in one tile share."""
    sharing = call.q.shape[1] // call.k.shape[1] if kernel.packed > 1 else 1
    row = (call.k.shape[3] + call.v.shape[3]) * call.q.element_size()
    return touched // sharing * kernel.block_k * row


def _before(call: Call, kernel: KernelPlan) -> Before:
    """What runs ahead of a kernel, in which tensors are read by residue class or a table is searched."""
    searched = call.keys if kernel.cuts is not None else 0
    if kernel.classes == 1 or not kernel.descriptors:
        short_of_four = kernel.kind == "fused" and kernel.boxes is None and call.q.shape[2] % 4 != 0
        return Before(searched=searched, filled=ROW_NUMBERS if short_of_four else 0)
    short = [each for each in (call.q, call.k, call.v) if each.shape[2] % kernel.classes]
    copies, size = len(short), sum(2 * each.numel() * each.element_size() for each in short)
    if kernel.kind == "fused":
        copies += ROW_NUMBERS
        shorter = [each for each in short if each is not call.q]
        copies, size = copies + len(shorter), size + sum(2 * each.numel() * each.element_size() for each in shorter)
    return Before(searched=searched, copies=copies, bytes=size)


def _tiles(call: Call, kernel: KernelPlan) -> int:
    """How many tiles of its own side a kernel has."""
    if kernel.boxes is not None:
        return math.prod(kernel.boxes.counts("k" if kernel.by == "key" else "q"))
    grid = TileGrid.of(kernel)
    return grid.key_tiles(call.keys) if kernel.by == "key" else grid.query_tiles(call.q.shape[2])


def _bytes(call: Call, kernel: KernelPlan) -> int:
    """What a kernel reads and writes at least, once each."""
    size = call.q.element_size()
    queries, keys = call.q.numel(), call.k.numel() + call.v.numel()
    outputs = call.q.numel() // call.q.shape[3] * call.v.shape[3]
    match kernel.kind:
        case "forward":
            return size * (queries + keys + outputs)
        case "dq":
            return size * (2 * queries + keys + outputs)
        case "dkdv" | "fused":
            return size * (queries + 2 * keys + outputs) + (8 * queries if kernel.kind == "fused" else 0)


def _kernel_lines(cost: KernelCost) -> list[str]:
    found = cost.estimate
    name = cost.kind if cost.part == 0 else f"{cost.kind} of part {cost.part + 1}"
    counts = ", ".join(f"{each.symbol} = {each.count:,} {each.words}" for each in found.terms if each.count)
    near = "; costs of other tiles, scaled" if found.near else ""
    return [
        f"  {name}: {told(found.seconds)}, at least {told(found.floor)}, bound by: {found.bound}{near}",
        f"    seconds = {_printed(found.formula)}",
        f"    {counts}",
    ]


def _printed(formula: sympy.Expr) -> str:
    """A formula with three digits of its numbers."""
    import sympy

    rounded = formula.xreplace({number: sympy.Float(number, 3) for number in formula.atoms(sympy.Float)})
    return str(rounded)


def _mask(against: Against) -> str:
    return "a causal mask" if against == "causal" else "no mask, or one that it applies to every pair,"


def told(seconds: float) -> str:
    """A time in three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"
