"""What `spdsl explain` says of patterns with stages: one call, or a table over sizes and parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import typer

from spdsl.cli.output import print_json, print_table
from spdsl.cli.progress import progress
from spdsl.cli.tensors import note_generated
from spdsl.diagnostics import error
from spdsl.foretold import Foretelling
from spdsl.samples import drawn
from spdsl.selecting import GraphReport, explain_stages
from spdsl.whatif import MOST


def tell(made: Foretelling, generated: tuple[str, ...], *, as_json: bool) -> None:
    """One call: of random queries and keys, or without them where these would be many."""
    short = made.is_short()
    with progress("selecting and counting" if short else "counting", quiet=as_json):
        report = _report(made)
    generated = (*generated, "q", "k") if short else generated
    if as_json:
        print_json({"ok": True, **report.as_dict(), "generated_inputs": list(generated)})
        return
    note_generated(generated)
    typer.echo(report.text())


def _report(made: Foretelling) -> GraphReport:
    if made.is_short():
        tensors = drawn(made.sizes, made.value_dim, made.dtype, made.seed)
        report = explain_stages(made.key, *tensors, made.inputs(made.sizes), made.target, gpu=made.gpu)
    else:
        report = made.report()
    selected = made.selection(report)
    if selected is None and made.target != "cpu":
        why = "not what it takes to select, as calls read numbers that only a run knows"
        report = replace(report, estimated=(*report.estimated, why))
    return replace(report, selection=selected)


def tell_table(
    make: Callable[[Mapping[str, int]], Foretelling],
    over: Mapping[str, Sequence[int]],
    fixed: str,
    *,
    as_json: bool,
) -> None:
    """A row for each combination of values.

    Raises:
        SpatError: there are more than a table has (SP618), or a value does not fit.
    """
    rows = [dict(zip(over, values, strict=True)) for values in product(*over.values())]
    if len(rows) > MOST:
        found = f"{len(rows)} combinations are more than the {MOST} of a table"
        raise error("SP618", found, help="give fewer values")
    with progress("counting", quiet=as_json):
        times = [_times(make(row)) for row in rows]
    if as_json:
        found_rows = [{**row, **time} for row, time in zip(rows, times, strict=True)]
        print_json({"ok": True, "rows": found_rows})
        return
    heads = (*over, "selecting", "attention", "forward", "share", "backward", "dense forward")
    table = []
    for row, time in zip(rows, times, strict=True):
        selecting, share = time["selecting"], time["share"]
        cells = [_ms(selecting), _ms(time["attention"]), _ms(time["forward"])]
        cells += ["?" if share is None else f"{share:.0%}", _ms(time["backward"]), _ms(time["dense_forward"])]
        table.append((*(f"{row[name]:,}" for name in over), *cells))
    print_table(heads, table)
    typer.echo(f"milliseconds for {fixed}; sets are estimated, as `spdsl explain` tells of each call")


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e3:.3f}"


def _times(made: Foretelling) -> dict[str, float | None]:
    """Seconds of a call; None for what cannot be told without a run."""
    report = _report(made)
    costs = [each.cost for _, each in report.softmaxes if each.cost is not None]
    selected = report.selection
    return {
        "selecting": None if selected is None else selected.seconds,
        "attention": sum(each.forward for each in costs),
        "forward": None if selected is None else selected.forward,
        "share": None if selected is None else selected.share,
        "backward": sum(each.backward for each in costs),
        "dense_forward": max(each.dense_forward for each in costs),
    }
