"""`spdsl tune`: measure the best candidates of a pattern's kernels on this machine, or the machine itself."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Annotated

import typer

from spdsl.cli.loading import load_pattern
from spdsl.cli.options import (
    LENGTH_HELP,
    MOST_TOKENS,
    DtypeOption,
    GroupsOption,
    HeadDimOption,
    HeadsOption,
    JsonOption,
    LayerOption,
    ParameterOption,
    ValueDimOption,
    head_counts,
    known_dtype,
    parse_parameters,
)
from spdsl.cli.output import note, print_json, print_table
from spdsl.cli.progress import progress

if TYPE_CHECKING:
    from spdsl.tuning import Tuned


LENGTH = 8192
"""Keys, where neither the command nor the pattern says how many."""


def tune(
    pattern: Annotated[
        str | None,
        typer.Argument(help="A pattern, as elsewhere; without one the machine is measured.", metavar="PATTERN"),
    ] = None,
    parameter: ParameterOption = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help=LENGTH_HELP.format(LENGTH), min=1, max=MOST_TOKENS)] = None,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Sequences.", min=1)] = 1,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    head_dim: HeadDimOption = 128,
    value_dim: ValueDimOption = None,
    dtype: DtypeOption = "bf16",
    layer: LayerOption = None,
    backward: Annotated[bool, typer.Option(help="Measure the backward pass too.")] = True,
    budget: Annotated[float | None, typer.Option(help="Seconds after which no other candidate is begun.")] = None,
    device: Annotated[str, typer.Option(help="The device to measure on; cuda where there is one.")] = "auto",
    gpus: Annotated[
        int,
        typer.Option(help="GPUs of this machine, all of one kind, that measure a share of the candidates each.", min=1),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed for inputs that are not given.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure the model's best candidates on this GPU and keep the fastest for all calls of this kind.

    Lengths and parameters count rounded up to powers of two.  What was measured before is not measured again.

    \b
    Examples:
      spdsl tune streaming -p window=1024 -n 32768 --heads 16
      spdsl tune documents --input doc=ids.npz -n 16384 --budget 30 --gpus 8
      spdsl tune
    """
    if pattern is None:
        _machine(device, as_json=as_json)
        return
    heads, groups = head_counts(heads, groups)
    known_dtype(dtype)
    from spdsl.cli.tensors import length_of

    n = length_of(*load_pattern(pattern, parse_parameters(parameter)), n, LENGTH, layer)
    wanted = Wanted(
        pattern=pattern,
        parameters=tuple(parameter or ()),
        given=tuple(given or ()),
        batch=batch,
        nq=nq or n,
        n=n,
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        value_dim=value_dim or head_dim,
        dtype=dtype,
        layer=layer,
        backward=backward,
        budget=budget,
        seed=seed,
    )
    start = time.monotonic()
    if gpus > 1:
        _spread(wanted, gpus, quiet=as_json)
        # What they measured is known now; what they left out, for lack of time, stays so.
        wanted = replace(wanted, budget=None if budget is None else budget - (time.monotonic() - start))
    _report(_measured(wanted, device, quiet=as_json), as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be tuned, as it was asked for; what other processes are told."""

    pattern: str
    parameters: tuple[str, ...]
    given: tuple[str, ...]
    batch: int
    nq: int
    n: int
    heads: int
    groups: int
    head_dim: int
    value_dim: int
    dtype: str
    layer: int | None
    backward: bool
    budget: float | None
    seed: int


def _measured(wanted: Wanted, device: str, *, share: tuple[int, int] = (0, 1), quiet: bool) -> Tuned:
    """Measure the candidates, or a share of them, on a device."""
    import torch

    from spdsl.cli.measure import DTYPES, device_of, note_first_kernels
    from spdsl.cli.tensors import make_inputs, note_generated
    from spdsl.pipeline import key_of
    from spdsl.samples import Sizes
    from spdsl.tuning import tune as measure

    loaded, values = load_pattern(wanted.pattern, parse_parameters(list(wanted.parameters)))
    where = device_of(device)
    sizes = Sizes(
        batch=wanted.batch,
        heads=wanted.heads,
        groups=wanted.groups,
        nq=wanted.nq,
        n=wanted.n,
        head_dim=wanted.head_dim,
    )
    inputs, generated = make_inputs(loaded, values, list(wanted.given), sizes, layer=wanted.layer, seed=wanted.seed)
    generator = torch.Generator().manual_seed(wanted.seed)

    def draw(count: int, rows: int, dim: int) -> torch.Tensor:
        return torch.randn(wanted.batch, count, rows, dim, generator=generator).to(where, DTYPES[wanted.dtype])

    q, k = draw(wanted.heads, wanted.nq, wanted.head_dim), draw(wanted.groups, wanted.n, wanted.head_dim)
    v = draw(wanted.groups, wanted.n, wanted.value_dim)
    key = key_of(loaded.checked, values, wanted.layer, None, False)
    tables = {name: each.to(where) for name, each in inputs.items()}
    if share == (0, 1):
        note_generated(generated)
        note_first_kernels()
    with progress("compiling", quiet=quiet, timing=True) as watch:
        return measure(key, q, k, v, tables, backward=wanted.backward, budget=wanted.budget, share=share, watch=watch)


def _measure_share(wanted: Wanted, number: int, count: int) -> None:
    _measured(wanted, f"cuda:{number}", share=(number, count), quiet=True)


def _spread(wanted: Wanted, count: int, *, quiet: bool) -> None:
    """Measure a share of the candidates on each of so many GPUs: the first here, the others in a process for each."""
    with ProcessPoolExecutor(count - 1, mp_context=get_context("spawn")) as pool:
        others = [pool.submit(_measure_share, wanted, number, count) for number in range(1, count)]
        _measured(wanted, "cuda:0", share=(0, count), quiet=quiet)
        for done in others:
            done.result()


def _report(found: Tuned, *, as_json: bool) -> None:
    from spdsl.choices import record_of
    from spdsl.tuning import text_of

    best = found.best
    if as_json:
        rows = [
            {
                "kind": each.kind,
                "tiles": record_of(((each.kind, each.tiles),))[each.kind],
                "predicted": each.predicted,
                "seconds": each.seconds,
                "own": each.own,
                "best": best.get(each.kind) is each,
            }
            for each in found.measured
        ]
        print_json({"ok": True, "gpu": found.situation.gpu, "complete": found.complete, "candidates": rows})
        return
    table = []
    for each in sorted(found.measured, key=lambda one: (one.kind, one.seconds or 1e9)):
        marks = [
            word for word, holds in (("taken", best.get(each.kind) is each), ("the plan's own", each.own)) if holds
        ]
        measured = "does not run" if each.seconds is None else f"{each.seconds * 1e3:.4f}"
        predicted = "" if each.predicted is None else f"{each.predicted * 1e3:.4f}"
        table.append((each.kind, text_of(each.tiles), predicted, measured, ", ".join(marks)))
    print_table(("kernel", "tiles", "predicted, ms", "measured, ms", ""), table)
    if not found.complete:
        note("time ran out before all candidates were measured; tune again to go on")


def _machine(device: str, *, as_json: bool) -> None:
    from spdsl.cli.measure import device_of
    from spdsl.profiling import measure_device

    found = measure_device(device_of(device))
    if as_json:
        print_json({"ok": True, **{name: value for name, value in found.as_dict().items() if name != "rates"}})
        return
    typer.echo(
        f"{found.name}: matrix products {found.matrix_rate / 1e12:.0f} TFLOP/s, copies {found.copy_rate / 1e12:.2f} "
        f"TB/s, start of a kernel {found.launch * 1e6:.1f} µs; kernels take {found.scale:.2f} times as long as shipped"
    )
