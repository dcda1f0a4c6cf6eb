"""From measured times to a device profile.

The costs of every choice of tiles are fitted by least absolute relative errors with no cost below zero.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from statistics import median
from typing import Any, TypeAlias

import torch

from spdsl.analysis.cost import (
    DENSE_PRODUCTS,
    DENSE_ROWS,
    delta_seconds,
    dense_held,
    estimate,
)
from spdsl.analysis.device import COSTS, Dense, DensePass, DeviceProfile, Rate
from spdsl.analysis.plans import Tiles
from spdsl.analysis.sharing import as_cut, held, program_share
from spdsl.analysis.work import Before, Work

Row: TypeAlias = dict[str, Any]


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
    """Dense attention by head dim, from the median time of every shape."""
    shapes = {row["subject"]: row["shape"] for row in rows if "shape" in row}
    found: dict[int, dict[_Shape, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if "dense" in row and row["subject"] in shapes:
            batch, heads, _, n, dim, _ = shapes[row["subject"]]
            found[int(dim)][int(batch) * int(heads), int(n), row["dense"] == "causal"].append(row)
    return tuple(
        Dense(
            head_dim=dim,
            **{
                name: _pass(
                    {shape: median(row[name] for row in some) for shape, some in times.items()},
                    DENSE_PRODUCTS[name] * 4 * dim * DENSE_ROWS**2,
                    device.multiprocessors,
                )
                for name in DENSE_PRODUCTS
            },
        )
        for dim, times in found.items()
    )


_Shape: TypeAlias = tuple[int, int, bool]
"""Heads, tokens, and whether it is causal."""

RAGGED = (1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12, 1.14)


def _pass(times: dict[_Shape, float], operations: float, multiprocessors: int) -> DensePass:
    """What fits the ``times`` of a pass best, a tile of which takes so many ``operations``."""
    seconds = torch.tensor(list(times.values()), dtype=torch.float64)
    tried = []
    for tail, ragged in product(TAILS, RAGGED):
        held = [dense_held(heads, n, n, tail, ragged, multiprocessors, causal=causal) for heads, n, causal in times]
        matrix = torch.tensor([[*each, 1.0] for each in held], dtype=torch.float64)
        tried.append((*_least(matrix, seconds, seconds, worst=0.01), tail, ragged))
    (tile, program, start), _, tail, ragged = min(tried, key=lambda each: each[1])
    rate = operations * multiprocessors / tile
    return DensePass(rate=rate, start=start, program=program / tile, tail=tail, ragged=ragged)


def _features(row: Row, device: DeviceProfile, rate: Rate) -> list[float]:
    work = as_cut(works_of(row)[0], device.multiprocessors)
    share = work.masked / work.touched if work.touched else 0.0
    long = work.longest or work.touched / work.programs
    per = device.multiprocessors
    full = held(work, work.full, long * (1 - share), per, rate)
    masked = held(work, work.masked, long * share, per, rate)
    every = full + masked
    programs = held(work, work.programs, 1, per, rate)
    return [
        programs * program_share(work, per),
        full + masked,
        masked,
        masked * work.operations,
        masked * work.loads,
        every * work.extra,
        every * work.listed,
        programs * bool(work.before.searched),
    ]


def _costs(rows: Sequence[Row], device: DeviceProfile) -> dict[str, float]:
    """Costs by name: those that fit best, with the best of some shares of the longest program, and of some factors for
    programs that are alone."""
    found = {"alone": 1.0, "tail": 0.5}
    for name, values in (("tail", TAILS), ("alone", ALONE), ("tail", TAILS)) if len(rows) >= LEAST else ():
        found[name] = min(values, key=lambda value: _fitted(rows, device, found | {name: value})[1])
    return _fitted(rows, device, found)[0] | found


ALONE = (0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)

TAILS = tuple(each / 10 for each in range(11))

LEAST = 8
"""Times from which on it can be told how long the longest program, or one that is alone, takes."""


def _fitted(rows: Sequence[Row], device: DeviceProfile, shares: Mapping[str, Any]) -> tuple[dict[str, float], float]:
    """Costs by name, and how far they are from the times."""
    free = replace(_free(rows[0]), **shares)
    matrix = torch.tensor([_features(row, device, free) for row in rows], dtype=torch.float64)
    fixed = [seconds(row, replace(device, rates=(free,))) for row in rows]
    times = torch.tensor([row["seconds"] - start for row, start in zip(rows, fixed, strict=True)], dtype=torch.float64)
    scale = torch.tensor([row["seconds"] for row in rows], dtype=torch.float64)
    [work] = works_of(rows[0])
    matrix, times, scale = _with_prior(matrix, times, scale, work.tiles.block_q * work.tiles.block_k)
    solution, far = _least(matrix, times, scale, worst=0.02)
    found = dict(zip(COSTS, solution, strict=True))
    return found | {"masked": found["full"] + found["masked"]}, far


def _least(
    matrix: torch.Tensor, times: torch.Tensor, scale: torch.Tensor, *, worst: float
) -> tuple[list[float], float]:
    """The solution without negative numbers whose absolute errors, as shares of ``scale``, are least, and their sum;
    errors below ``worst`` count as squares."""
    weights = 1 / scale
    for _ in range(20):
        solution = _nonnegative(matrix * weights[:, None], times * weights)
        errors = ((matrix @ solution - times) / scale).abs()
        weights = 1 / (scale * errors.clamp(min=worst).sqrt())
    return [float(each) for each in solution], float(errors.sum())


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
    memory a tenth of a tile, and the ends of a program half of one."""
    tile = float((times / matrix[:, 1]).median())
    usual = (
        ({"full": 0.1, "masked": -1.0}, 0.0),
        ({"full": 2.0, "program": -0.5}, 0.0),
        ({"operation": 10.0}, 5 * area * LANE),
        ({"load": 1.0}, 10 * area * LANE),
        ({"extra": 5.0}, 5 * area * LANE),
        ({"listed": 1.0}, 0.1 * tile),
        ({"cut": 1.0}, 0.5 * tile),
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
