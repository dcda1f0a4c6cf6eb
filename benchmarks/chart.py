"""Results of the suite as a chart and as a table: ``python -m benchmarks chart results.json --out chart.png``.

With ``--table FILE`` the table is also written between two marks in a Markdown file, so that pages show what was
measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

DIRECTIONS = {"fwd": "forward", "bwd": "backward"}
COLOURS = {"spdsl": "#1f5fa8", "flex": "#e0a030", "flex-tuned": "#b5651d", "cudnn": "#7a9a3a"}
LABELS = {"spdsl": "spdsl", "flex": "FlexAttention", "flex-tuned": "FlexAttention, autotuned", "cudnn": "cuDNN"}

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

Row = dict[str, Any]


def main(words: Sequence[str]) -> None:
    """Draw and write what the words of the command ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chart", description=__doc__)
    parser.add_argument("results", type=Path, help="a JSON file of the suite")
    parser.add_argument("--out", type=Path, help="the PNG file to write")
    parser.add_argument("--table", type=Path, help=f"the Markdown file to write to, between `{BEGIN}` and `{END}`")
    given = parser.parse_args(words)
    rows: list[Row] = json.loads(given.results.read_text(encoding="utf-8"))
    if given.out is not None:
        chart(rows).savefig(given.out, dpi=150)
    if given.table is not None:
        page = given.table.read_text(encoding="utf-8")
        given.table.write_text(between(page, table(rows)), encoding="utf-8")
    if given.out is None and given.table is None:
        print(table(rows), end="")


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: a line for each case, with milliseconds and in brackets 10^12 useful operations a second."""
    impls = [impl for impl in LABELS if any(row["impl"] == impl for row in rows)]
    known = {(row["case"], row["direction"], row["impl"]): row for row in rows}
    titles = [
        f"{direction} {title}" for direction in DIRECTIONS for title in (*(LABELS[impl] for impl in impls), "floor")
    ]
    lines = [f"| mask | {' | '.join(titles)} |", "|" + "---|" * (len(titles) + 1)]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = [case]
        for direction in DIRECTIONS:
            found = [known.get((case, direction, impl)) for impl in impls]
            cells += [_cell(row) for row in found]
            floor = next((row["floor_ms"] for row in found if row is not None), None)
            cells.append("–" if floor is None else _ms(floor))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    return "–" if row is None else f"{_ms(row['ms'])} ({row['tflops_useful']:.0f})"


def _ms(ms: float) -> str:
    return f"{ms:.1f}" if ms >= 100 else f"{ms:.2f}"


def between(page: str, text: str) -> str:
    """The page with the text between its two marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table: `{BEGIN}` and `{END}` on lines of their own")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def chart(rows: Sequence[Row]) -> Figure:
    """Useful rates of all cases, forward above backward; a tick marks the machine's matrix rate."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    impls = [impl for impl in COLOURS if any(row["impl"] == impl for row in rows)]
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(1.6 + 0.95 * len(cases), 7), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        for axis, (direction, title) in zip(axes, DIRECTIONS.items(), strict=True):
            here = [row for row in rows if row["direction"] == direction]
            _bars(axis, here, cases, impls)
            axis.set_ylabel(f"{title}, useful TFLOP/s")
            axis.axhline(_rate(here), color="#888888", linewidth=0.8, linestyle=":")
            axis.annotate(
                "matrix product", (len(cases) - 0.5, _rate(here)), ha="right", va="bottom", color="#888888", fontsize=8
            )
        axes[0].legend(frameon=False, ncols=len(impls), loc="lower left", bbox_to_anchor=(0, 1.02))
        axes[1].set_xticks(range(len(cases)), cases, rotation=30, ha="right")
        figure.suptitle(f"{rows[0]['gpu']}, {rows[0]['date']}: torch {rows[0]['torch']}, triton {rows[0]['triton']}")
    return figure


def _bars(axis: Any, rows: Sequence[Row], cases: Sequence[str], impls: Sequence[str]) -> None:
    """A group of bars for each case, with the number on that of spdsl."""
    rate = {(row["case"], row["impl"]): row["tflops_useful"] for row in rows}
    for index, case in enumerate(cases):
        there = [impl for impl in impls if (case, impl) in rate]
        width = 0.8 / len(impls)
        for place, impl in enumerate(there):
            at = index + (place - (len(there) - 1) / 2) * width
            label = LABELS[impl] if case == cases[0] else None
            axis.bar(at, rate[case, impl], width * 0.92, color=COLOURS[impl], label=label)
            if impl == "spdsl":
                axis.annotate(f"{rate[case, impl]:.0f}", (at, rate[case, impl]), ha="center", va="bottom", fontsize=8)


def _rate(rows: Sequence[Row]) -> float:
    """The machine's matrix rate, from the floor of the case that takes longest."""
    longest = max(rows, key=lambda row: row["floor_ms"])
    return float(longest["tflops_useful"] * longest["ms"] / longest["floor_ms"])
