"""What a pattern would cost at other lengths, sizes and parameters, and how its cost grows.

From a function that makes the call for some values to predictions for many, and to polynomials in n.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import sympy

from spdsl.analysis.device import DeviceProfile
from spdsl.costs import Prediction, predict, work
from spdsl.diagnostics import error
from spdsl.runtime.calls import Call

MOST = 64
"""Rows of a table at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The values that were put in, and what they cost."""

    values: dict[str, int]
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a forward pass grows with n: its tiles and its seconds, polynomials in n that are exact for long inputs, at
    lengths that are multiples of ``step``."""

    tiles: sympy.Expr
    seconds: sympy.Expr
    step: int

    @property
    def law(self) -> str:
        """The leading power in words."""
        degree = sympy.degree(self.tiles, sympy.Symbol("n")) if self.tiles.free_symbols else 0
        return {0: "does not grow with n", 1: "grows like n", 2: "grows like n²"}[int(degree)]

    def lines(self) -> list[str]:
        """To read."""
        rounded = self.seconds.xreplace({each: sympy.Float(each, 3) for each in self.seconds.atoms(sympy.Float)})
        return [f"the forward pass {self.law}: {self.tiles} tiles, {rounded} seconds (at multiples of {self.step:,})"]


def table(
    make: Callable[[Mapping[str, int]], Call], over: Mapping[str, Sequence[int]], device: DeviceProfile
) -> list[Row]:
    """A row for every combination of values.

    Raises:
        SpatError: there are more than `MOST` (SP618), or a value does not fit.
    """
    combinations = [dict(zip(over, values, strict=True)) for values in product(*over.values())]
    if len(combinations) > MOST:
        found = f"{len(combinations)} combinations are more than the {MOST} of a table"
        raise error("SP618", found, help="give fewer values")
    return [Row(values=values, prediction=predict(make(values), device)) for values in combinations]


def growth(make: Callable[[int], Call], device: DeviceProfile, *, beyond: int) -> Growth | None:
    """How the forward pass grows at lengths past ``beyond``; None where no polynomial of degree 2 goes through them."""
    step = 4096
    while step < beyond:
        step *= 2
    # Few programs leave multiprocessors idle, which long inputs do not.
    while step < 1 << 18 and work(call := make(2 * step), call.plan.forward).programs < 8 * device.multiprocessors:
        step *= 2
    lengths = [step * turn for turn in (2, 3, 4, 5)]
    predictions, counts = [], []
    for n in lengths:
        call = make(n)
        predictions.append(predict(call, device, against="full"))
        counts.append(work(call, call.plan.forward))
    tiles = _through(lengths, [each.touched for each in counts])
    seconds = _close(lengths, [_steady(each) for each in predictions], tiles)
    return None if tiles is None or seconds is None else Growth(tiles=tiles, seconds=seconds, step=step)


def _steady(prediction: Prediction) -> float:
    """The time of a forward pass, without what the last turn of programs that are alike leaves idle: that goes up and
    down with the length, and does not grow."""
    kernels = (each for each in prediction.kernels if each.kind == "forward")
    return sum(each.estimate.seconds - each.estimate.end * each.work.even for each in kernels)


def _through(lengths: Sequence[int], values: Sequence[int]) -> sympy.Expr | None:
    """The polynomial of degree 2 at most through values at lengths of equal distance, exact or not at all."""
    exact = [Fraction(value) for value in values]
    first = [b - a for a, b in pairwise(exact)]
    second = [b - a for a, b in pairwise(first)]
    if len(set(second)) > 1:
        return None
    turn = (sympy.Symbol("n") - lengths[0]) / sympy.Integer(lengths[1] - lengths[0])
    start, slope, bend = (sympy.Rational(each.numerator, each.denominator) for each in (exact[0], first[0], second[0]))
    return sympy.expand(start + slope * turn + bend * turn * (turn - 1) / 2)


def _close(lengths: Sequence[int], values: Sequence[float], tiles: sympy.Expr | None) -> sympy.Expr | None:
    """The polynomial with the degree of ``tiles`` through the last values."""
    if tiles is None:
        return None
    n = sympy.Symbol("n")
    degree = int(sympy.degree(tiles, n)) if tiles.free_symbols else 0
    points = list(zip(lengths, values, strict=True))[-(degree + 1) :]
    return sympy.expand(sympy.interpolate(points, n)) if degree else sympy.Float(values[-1])


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Predicted times over the first of the values that vary, a line for each combination of the others; a PNG file.

    Raises:
        SpatError: matplotlib is not installed (SP619).
    """
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise error("SP619", "plots are drawn by matplotlib, which is not installed", help="install it") from None
    axis, *others = rows[0].values
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharex=True, layout="constrained")
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.values[name] for name in others), []).append(row)
    known: set[tuple[float, ...]] = set()
    for names, members in groups.items():
        label = ", ".join(f"{name} {value:,}" for name, value in zip(others, names, strict=True)) or "predicted"
        places = [row.values[axis] for row in members]
        found = [row.prediction for row in members]
        for axes, sparse, dense in (
            (left, [each.forward for each in found], [each.dense_forward for each in found]),
            (right, [each.backward for each in found], [each.dense_backward for each in found]),
        ):
            [line] = axes.plot(places, [each * 1e3 for each in sparse], marker="o", label=label)
            if tuple(dense) not in known:
                known.add(tuple(dense))
                kind = f"{found[0].against} dense" + ("" if len(known) <= 2 else f", {label}")
                colour = "grey" if len(known) <= 2 else line.get_color()
                axes.plot(places, [each * 1e3 for each in dense], linestyle="--", color=colour, label=kind)
    for axes, name in ((left, "forward"), (right, "backward")):
        axes.set(xlabel=axis, ylabel="milliseconds", title=name, xscale="log", yscale="log")
        axes.set_xticks(
            sorted({row.values[axis] for row in rows}), [f"{v:,}" for v in sorted({row.values[axis] for row in rows})]
        )
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def as_dict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table for `--json`; times in seconds."""
    return [
        {
            **row.values,
            "forward": row.prediction.forward,
            "backward": row.prediction.backward,
            "dense_forward": row.prediction.dense_forward,
            "dense_backward": row.prediction.dense_backward,
            "verdict": row.prediction.verdict,
        }
        for row in rows
    ]
