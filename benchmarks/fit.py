"""From measured times to a device profile.

The costs of every choice of tiles are fitted by least absolute relative errors with no cost below zero.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields, replace
from statistics import median
from typing import Any

import torch

from spdsl.analysis.cost import delta_seconds, dense_seconds, estimate, held, program_share
from spdsl.analysis.device import COSTS, Dense, DeviceProfile, Rate
from spdsl.analysis.plans import Tiles
from spdsl.analysis.work import Before, Work

Row = dict[str, Any]


def works_of(row: Row) -> list[Work]:
    """The kernels of a row."""
    names = {each.name for each in fields(Work)} - {"tiles", "before"}
    return [
        Work(
            **{name: value for name, value in each.items() if name in names},
            tiles=Tiles(**each["tiles"]),
            before=Before(**each.get("before", {})),
        )
        for each in row["works"]
    ]


def seconds(row: Row, device: DeviceProfile) -> float:
    """What the model says of a row, with the kernel before a backward pass where that was timed with it."""
    works = works_of(row)
    before = 0.0 if works[0].kind == "forward" or row.get("bare") else delta_seconds(works[0], device)
    return before + sum(estimate(work, device).seconds for work in works)


def fit(rows: Sequence[Row], machine: Row) -> DeviceProfile:
    """The profile of the machine on which the rows were measured, without a rate of dense attention."""
    device = DeviceProfile(
        name=machine["name"],
        target="sm_90",
        multiprocessors=machine["multiprocessors"],
        matrix_rate=machine["matrix_rate"],
        copy_rate=machine["copy_rate"],
        launch=machine["launch"],
        origin="shipped",
        about=machine.get("about", ""),
        dense=(),
        rates=(),
    )
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if len(row.get("works", ())) == 1:
            [work] = works_of(row)
            groups[work.kind, work.head_dim, work.descriptors, work.tiles].append(row)
    rates = [
        Rate(kind=kind, head_dim=dim, descriptors=descriptors, tiles=tiles, **_costs(members, device))
        for (kind, dim, descriptors, tiles), members in groups.items()
    ]
    return replace(device, rates=tuple(rates))


def fit_dense(rows: Sequence[Row], device: DeviceProfile) -> tuple[Dense, ...]:
    """The rates of dense attention by head dim: the medians of those at which the model meets the measured times."""
    shapes = {row["subject"]: row["shape"] for row in rows if "shape" in row}
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if "dense" in row and row["subject"] in shapes and int(shapes[row["subject"]][3]) >= LONG:
            batch, heads, _, n, dim, _ = shapes[row["subject"]]
            found[int(dim)].append(_dense_rates(row, int(batch) * int(heads), int(n), int(dim), device))
    return tuple(
        Dense(head_dim=dim, forward=median(each[0] for each in rates), backward=median(each[1] for each in rates))
        for dim, rates in found.items()
    )


LONG = 4096
"""Tokens from which on dense attention is at its rate."""


def _dense_rates(row: Row, heads: int, n: int, dim: int, device: DeviceProfile) -> tuple[float, float]:
    def at(rate: float) -> tuple[float, float]:
        one = replace(device, dense=(Dense(head_dim=dim, forward=rate, backward=rate),))
        return dense_seconds(heads, n, n, dim, dim, one, causal=row["dense"] == "causal")

    start, slow = at(math.inf), at(1.0)
    forward, backward = (
        (full - free) / (row[name] - free)
        for full, free, name in zip(slow, start, ("forward", "backward"), strict=True)
    )
    return forward, backward


def _features(row: Row, device: DeviceProfile, alone: float) -> list[float]:
    [work] = works_of(row)
    share = work.masked / work.touched if work.touched else 0.0
    long = work.longest or work.touched / work.programs
    per = device.multiprocessors
    full = held(work, work.full, long * (1 - share), per, alone)
    masked = held(work, work.masked, long * share, per, alone)
    every = full + masked
    return [
        held(work, work.programs, 1, per, alone) * program_share(work, per),
        full + masked,
        masked,
        masked * work.operations,
        masked * work.loads,
        every * work.extra,
        every * work.listed,
    ]


def _costs(rows: Sequence[Row], device: DeviceProfile) -> dict[str, float]:
    """Costs by name: those that fit best, with the best of some factors for programs that are alone."""
    tried = [(*_fitted(rows, device, alone), alone) for alone in (ALONE if len(rows) >= LEAST else ALONE[:1])]
    found, _, alone = min(tried, key=lambda each: each[1])
    return found | {"alone": alone}


ALONE = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


LEAST = 8
"""Times from which on it can be told whether a program that is alone takes longer."""


def _fitted(rows: Sequence[Row], device: DeviceProfile, alone: float) -> tuple[dict[str, float], float]:
    """Costs by name, and how far they are from the times."""
    matrix = torch.tensor([_features(row, device, alone) for row in rows], dtype=torch.float64)
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
    return found | {"masked": found["full"] + found["masked"]}, float(errors.sum())


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


def completed(found: DeviceProfile, before: DeviceProfile) -> DeviceProfile:
    """The profile with the costs of an earlier one for kernels of which there are no new times."""
    known = {_place(each) for each in found.rates}
    return replace(found, rates=(*found.rates, *(each for each in before.rates if _place(each) not in known)))


def _place(rate: Rate) -> tuple[object, ...]:
    return rate.kind, rate.head_dim, rate.descriptors, rate.tiles


def written(device: DeviceProfile) -> str:
    """The profile as it is kept, a line for each choice of tiles, numbers with six digits."""
    record = device.as_dict()
    rates = record.pop("rates")
    for rate in rates:
        rate |= {name: float(f"{rate[name]:.6g}") for name in COSTS}
    lines = ",\n".join(f"  {json.dumps(rate)}" for rate in rates)
    return json.dumps(record, indent=1).removesuffix("\n}") + f',\n "rates": [\n{lines}\n ]\n}}\n'
