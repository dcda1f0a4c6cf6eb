"""From measured times to a device profile, and how well it predicts: ``python -m benchmarks.fit raw.json``.

The costs of every choice of tiles are fitted on the subjects whose role is `fit`, by least absolute relative errors
with no cost below zero; those whose role is `check` say how good the model is.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from spdsl.analysis.cost import TAIL, delta_seconds, estimate, program_share, resident
from spdsl.analysis.device import Dense, DeviceProfile, Rate, profile_for
from spdsl.analysis.plans import Tiles
from spdsl.analysis.work import Work

Row = dict[str, Any]
COSTS = ("program", "full", "masked", "operation", "load", "extra", "listed")
"""What is fitted; here ``masked`` is what masking adds to a full tile."""


def works_of(row: Row) -> list[Work]:
    """The kernels of a row."""
    names = {each.name for each in fields(Work)} - {"tiles"}
    return [
        Work(**{name: value for name, value in each.items() if name in names}, tiles=Tiles(**each["tiles"]))
        for each in row["works"]
    ]


def seconds(row: Row, device: DeviceProfile) -> float:
    """What the model says of a row, with the kernel before a backward pass where that was timed with it."""
    works = works_of(row)
    before = 0.0 if works[0].kind == "forward" or row.get("bare") else delta_seconds(works[0], device)
    return before + sum(estimate(work, device).seconds for work in works)


def fit(rows: Sequence[Row], machine: Row) -> DeviceProfile:
    """The profile of the machine on which the rows were measured."""
    device = DeviceProfile(
        name=machine["name"],
        target="sm_90",
        multiprocessors=machine["multiprocessors"],
        matrix_rate=machine["matrix_rate"],
        copy_rate=machine["copy_rate"],
        launch=machine["launch"],
        origin="shipped",
        about=machine.get("about", ""),
        dense=tuple(Dense(**each) for each in machine["dense"]),
        rates=(),
    )
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if len(row["works"]) == 1:
            [work] = works_of(row)
            groups[work.kind, work.head_dim, work.descriptors, work.tiles].append(row)
    rates = [
        Rate(kind=kind, head_dim=dim, descriptors=descriptors, tiles=tiles, **_costs(members, device))
        for (kind, dim, descriptors, tiles), members in groups.items()
    ]
    return replace(device, rates=tuple(rates))


def _features(row: Row, device: DeviceProfile) -> list[float]:
    [work] = works_of(row)
    share = work.masked / work.touched if work.touched else 0.0
    long = work.longest or work.touched / work.programs
    end = TAIL * resident(work.tiles)
    per = device.multiprocessors

    def both(count: float, longest: float) -> float:
        return count / per + end * longest

    full, masked = both(work.full, long * (1 - share)), both(work.masked, long * share)
    every = full + masked
    return [
        both(work.programs, 1) * program_share(work, per),
        full + masked,
        masked,
        masked * work.operations,
        masked * work.loads,
        every * work.extra,
        every * work.listed,
    ]


def _costs(rows: Sequence[Row], device: DeviceProfile) -> dict[str, float]:
    """Costs by name."""
    matrix = torch.tensor([_features(row, device) for row in rows], dtype=torch.float64)
    fixed = [seconds(row, replace(device, rates=(_free(row),))) for row in rows]
    times = torch.tensor([row["seconds"] - start for row, start in zip(rows, fixed, strict=True)], dtype=torch.float64)
    scale = torch.tensor([row["seconds"] for row in rows], dtype=torch.float64)
    [work] = works_of(rows[0])
    matrix, times, scale = _with_prior(matrix, times, scale, work.tiles.block_q * work.tiles.block_k)
    weights, solution = 1 / scale, torch.zeros(len(COSTS), dtype=torch.float64)
    for _ in range(20):
        solution = _nonnegative(matrix * weights[:, None], times * weights)
        errors = ((matrix @ solution - times) / scale).abs()
        weights = 1 / (scale * errors.clamp(min=0.02).sqrt())
    found = dict(zip(COSTS, solution.tolist(), strict=True))
    return found | {"masked": found["full"] + found["masked"]}


PRIOR = 0.1
"""How far, as a share of a typical tile's time, costs may lie from what is usual for as much as a measured time may be
wrong."""

LANE = 1 / (128 * 1.7e9)
"""Seconds of an operation on one number: a multiprocessor has 128 lanes."""


def _with_prior(
    matrix: torch.Tensor, times: torch.Tensor, scale: torch.Tensor, area: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With rows that decide what few measurements leave open: a masked tile takes about a tenth longer than a full one,
    a program as long as two tiles, an operation of the mask half a turn of all lanes, a load ten, finding a tile in
    memory a tenth of a tile."""
    tile = float((times / matrix[:, 1]).median())
    usual = (
        ({"full": 0.1, "masked": -1.0}, 0.0),
        ({"full": 2.0, "program": -0.5}, 0.0),
        ({"operation": 10.0}, 5 * area * LANE),
        ({"load": 1.0}, 10 * area * LANE),
        ({"extra": 5.0}, 5 * area * LANE),
        ({"listed": 1.0}, 0.1 * tile),
    )
    rows = torch.tensor([[row.get(name, 0.0) for name in COSTS] for row, _ in usual], dtype=torch.float64)
    goals = torch.tensor([goal for _, goal in usual], dtype=torch.float64)
    sizes = torch.full((len(usual),), tile / PRIOR, dtype=torch.float64)
    return torch.cat([matrix, rows]), torch.cat([times, goals]), torch.cat([scale, sizes])


def _free(row: Row) -> Rate:
    [work] = works_of(row)
    nothing = dict.fromkeys(COSTS, 0.0)
    return Rate(kind=work.kind, head_dim=work.head_dim, descriptors=work.descriptors, tiles=work.tiles, **nothing)


def _nonnegative(matrix: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Least squares without negative solutions, by leaving out one negative column after the other."""
    columns = list(range(matrix.shape[1]))
    found = torch.zeros(matrix.shape[1], dtype=torch.float64)
    while columns:
        norms = matrix[:, columns].norm(dim=0)
        solved = torch.linalg.lstsq(matrix[:, columns] / norms, times[:, None], driver="gelsd").solution[:, 0]
        if float(solved.min()) >= 0:
            found[columns] = solved / norms
            return found
        del columns[int(solved.argmin())]
    return found


def study(rows: Sequence[Row], device: DeviceProfile) -> dict[str, Any]:
    """Errors of predicted times, and what the model's first choice costs against the best of those measured."""
    errors: dict[str, list[float]] = defaultdict(list)
    cases: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        kind = "+".join(each["kind"] for each in row["works"])
        errors[kind].append(seconds(row, device) / row["seconds"] - 1)
        if not row.get("now"):  # times of one run are compared with each other
            cases[row["subject"], kind].append(row)
    regrets, default = [], []
    for members in cases.values():
        if len(members) < 2:
            continue
        best = min(row["seconds"] for row in members)
        chosen = min(members, key=lambda row: seconds(row, device))
        regrets.append(chosen["seconds"] / best)
        default += [row["seconds"] / best for row in members if row.get("default")]
    return {
        "kernels": {kind: _spread(found) for kind, found in errors.items()},
        "all": _spread([each for found in errors.values() for each in found]),
        "first_choice": _regret(regrets),
        "default_choice": _regret(default),
    }


def _spread(errors: Sequence[float]) -> dict[str, float]:
    sizes = sorted(map(abs, errors))
    return {
        "count": len(sizes),
        "median": round(median(sizes), 4),
        "p90": round(quantiles(sizes, n=10)[-1] if len(sizes) > 1 else sizes[0], 4),
        "worst": round(sizes[-1], 4),
        "bias": round(median(errors), 4),
    }


def _regret(ratios: Sequence[float]) -> dict[str, float]:
    if not ratios:
        return {"count": 0}
    return {
        "count": len(ratios),
        "within_5_percent": round(sum(each <= 1.05 for each in ratios) / len(ratios), 4),
        "median": round(median(ratios), 4),
        "worst": round(max(ratios), 4),
    }


def _short(tiles: Tiles) -> str:
    return f"{tiles.block_q}x{tiles.block_k}/{tiles.warps}/{tiles.stages}"


def read(path: Path) -> dict[str, Any]:
    """Rows and their machine, from one JSON document or from lines of them; what is missing is as shipped."""
    text = path.read_text()
    if path.suffix != ".jsonl":
        return dict(json.loads(text))
    about, *rows = (json.loads(line) for line in text.splitlines())
    known = profile_for(about["machine"]["name"], "sm_90").as_dict()
    return {"machine": {"dense": known["dense"], **about["machine"]}, "rows": rows}


def main() -> None:
    """Fit, print the study, and write the profile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--profile", type=Path, help="the profile to write")
    parser.add_argument("--plot", type=Path, help="the PNG file to draw")
    arguments = parser.parse_args()
    raw = read(arguments.raw)
    rows = [row for row in raw["rows"] if any(each["full"] + each["masked"] for each in row["works"])]
    device = fit([row for row in rows if row["role"] == "fit"], raw["machine"])
    found = {role: study([row for row in rows if row["role"] == role], device) for role in ("fit", "check")}
    if arguments.rows:
        for row in rows:
            kinds = " ".join(f"{each.kind} {_short(each.tiles)}" for each in works_of(row))
            error = seconds(row, device) / row["seconds"] - 1
            print(f"{row['role']:5} {row['subject']:26} {kinds:40} {row['seconds'] * 1e3:9.3f} ms {error:+.1%}")
    print(json.dumps(found, indent=1))
    if arguments.profile:
        arguments.profile.write_text(_written(device))
    if arguments.plot:
        plot(rows, device, arguments.plot)


def _written(device: DeviceProfile) -> str:
    """The profile as it is kept, a line for each choice of tiles, numbers with six digits."""
    record = device.as_dict()
    rates = record.pop("rates")
    for rate in rates:
        rate |= {name: float(f"{rate[name]:.6g}") for name in COSTS}
    lines = ",\n".join(f"  {json.dumps(rate)}" for rate in rates)
    return json.dumps(record, indent=1).removesuffix("\n}") + f',\n "rates": [\n{lines}\n ]\n}}\n'


def plot(rows: Sequence[Row], device: DeviceProfile, path: Path) -> None:
    """Predicted over measured times, on which the model was fitted and on which it was not."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for role, colour, marker in (("fit", "tab:grey", "o"), ("check", "tab:blue", "^")):
        some = [row for row in rows if row["role"] == role]
        measured = [row["seconds"] * 1e3 for row in some]
        predicted = [seconds(row, device) * 1e3 for row in some]
        words = "masks of the fit" if role == "fit" else "other masks"
        left.scatter(measured, predicted, s=18, c=colour, marker=marker, label=words)
        errors = sorted(abs(b / a - 1) * 100 for a, b in zip(measured, predicted, strict=True))
        right.step(errors, [(k + 1) / len(errors) for k in range(len(errors))], where="post", c=colour, label=words)
    ends = [0.1, 60]
    left.plot(ends, ends, c="black", lw=0.8)
    left.fill_between(ends, [0.85 * end for end in ends], [1.15 * end for end in ends], color="black", alpha=0.08)
    left.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", title=f"{device.name}, ±15 %")
    right.set(xlabel="error, %", ylabel="share of the times", ylim=(0, 1), xlim=(0, 30), title="errors")
    for axes in (left, right):
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
