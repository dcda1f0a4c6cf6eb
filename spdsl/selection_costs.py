"""How long the selections of a call take: each kernel's work by rates that were fitted, and their share of the whole.

From: what launches do (`spdsl.selection_work`) and a device.  To: `Selection`.  The rates are those of an H200, fitted
to the times of 30 calls of 14 patterns; of other GPUs they follow by the ratio of matrix rates, and of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spdsl.analysis.device import DeviceProfile
from spdsl.selection_work import Effort


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds of a launch, of a multiply-add, and of a number that is looked at."""

    launch: float
    product: float = 0.0
    number: float = 0.0


_FITTED_AT = 679e12
"""Operations a second of the GPU on which the rates were fitted."""

RATES = {
    "keys": Rates(launch=4.9e-6, product=6.9e-15, number=1.78e-12),
    "sums": Rates(launch=39e-6, product=0.64e-15, number=0.87e-12),
    "values": Rates(launch=94e-6, number=1.95e-12),
    "choose": Rates(launch=11.5e-6, number=5.1e-12),
    "torch": Rates(launch=1.5e-6),
    "sort": Rates(launch=5e-6),
    "other": Rates(launch=2e-6),
}
"""Rates by families of kernels; what has none but for a launch is bound by memory."""

_PASSES = {"sort": 4}
"""How often operations go through memory, once by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Launches of one name: how many, their time in seconds, and what most of it is spent on."""

    name: str
    launches: int
    seconds: float
    bound: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What selecting costs on ``device``, beside ``attention``, the seconds of the softmaxes of a forward pass.

    ``decided`` are functions of the run time that read a number which only a run knows.
    """

    device: str
    stages: tuple[StageCost, ...]
    attention: float
    decided: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The time of all selections of a forward pass, with the lists that are made of them."""
        return sum(each.seconds for each in self.stages)

    @property
    def forward(self) -> float:
        """The time of a forward pass."""
        return self.seconds + self.attention

    @property
    def share(self) -> float:
        """The share of selections in a forward pass."""
        return self.seconds / self.forward if self.forward else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The costs for `--json`; times in seconds."""
        return asdict(self) | {"seconds": self.seconds, "forward": self.forward, "share": self.share}

    def lines(self, told: Callable[[float], str]) -> list[str]:
        """The costs to read; ``told`` writes a time."""
        head = f"selecting, predicted for {self.device}: {told(self.seconds)}"
        found = [f"{head}, {self.share:.0%} of a forward pass of {told(self.forward)}"]
        shown = sorted(self.stages, key=lambda each: -each.seconds)
        least = self.seconds * _SMALL
        for each in shown:
            if each.seconds >= least:
                times = "" if each.launches == 1 else f" in {each.launches} launches"
                found.append(f"  {each.name}: {told(each.seconds)}{times}, bound by: {each.bound}")
        rest = [each for each in shown if each.seconds < least]
        if rest:
            word = "other" if len(rest) == 1 else "others"
            found.append(f"  {len(rest)} {word}: {told(sum(each.seconds for each in rest))}")
        if self.decided:
            found.append("  sizes that only a run knows are taken for 32, so that this may be too little")
        return found


_SMALL = 0.02
"""The share of the selections below which kernels are told together."""


def selection(
    efforts: Sequence[Effort], device: DeviceProfile, attention: float, decided: tuple[str, ...]
) -> Selection:
    """The costs of selections that do these efforts."""
    stages = tuple(_cost(each, device) for each in efforts)
    return Selection(device=device.name, stages=stages, attention=attention, decided=decided)


def _cost(effort: Effort, device: DeviceProfile) -> StageCost:
    rates, slower = RATES[effort.family], _FITTED_AT / device.matrix_rate
    computed = rates.product or rates.number
    size = 0.0 if computed else effort.bytes * _PASSES.get(effort.name, 1)
    terms = {
        "starts of kernels": rates.launch * effort.launches,
        "matrix products": rates.product * effort.products * slower,
        "numbers looked at": rates.number * effort.numbers * slower,
        "memory": size / device.copy_rate,
    }
    bound = max(terms, key=lambda each: terms[each])
    return StageCost(name=effort.name, launches=effort.launches, seconds=sum(terms.values()), bound=bound)
