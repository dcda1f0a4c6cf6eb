"""`spdsl bench`: how fast a pattern is here, beside dense attention and what the machine could do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spdsl.cli.loading import load_pattern
from spdsl.cli.options import (
    MOST_TOKENS,
    GroupsOption,
    HeadDimOption,
    HeadsOption,
    JsonOption,
    LayerOption,
    ParameterOption,
    PatternArgument,
    ValueDimOption,
    head_counts,
    known_dtype,
    parse_parameters,
)
from spdsl.cli.output import note, print_json, print_table, styled
from spdsl.cli.progress import progress

LENGTH, LENGTH_ON_A_CPU = 4096, 1024
"""Keys, where neither the command nor the pattern says how many."""
LENGTHS = "Number of keys; 4,096 by default, 1,024 on a CPU, or as many as a grid of the pattern has places."


def bench(
    pattern: PatternArgument,
    parameter: ParameterOption = None,
    data: Annotated[Path | None, typer.Option(help="Take inputs by their names from an .npz or .pt file.")] = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help=LENGTHS, min=1, max=MOST_TOKENS)] = None,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Sequences.", min=1)] = 1,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    head_dim: HeadDimOption = 128,
    value_dim: ValueDimOption = None,
    dtype: Annotated[str | None, typer.Option(help="One of bf16, fp16, fp32; bf16 on a GPU, fp32 on a CPU.")] = None,
    layer: LayerOption = None,
    device: Annotated[str, typer.Option(help="One of cpu, cuda; cuda where there is one.")] = "auto",
    backward: Annotated[bool, typer.Option(help="Also check and time the gradients.")] = True,
    dense: Annotated[bool, typer.Option(help="Also time torch's dense attention.")] = True,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds, of which the median counts.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Seed of random tensors.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Check a pattern at some queries, and time it beside dense attention.

    Useful operations are those of the pairs kept: 4·D for each pair forward,
    10·D backward.  The floor is the time that they would take at the rate of a
    large matrix product, measured here.  Dense attention is torch's, causal if
    the pattern is.  A pattern that selects is compared as a whole, with fewer
    keys where that would not fit, and its selection is also timed alone; with
    random queries and keys.  The exit status is 1 if an error is above its limit.

    \b
    Examples:
      spdsl bench local.spat -n 32768 --heads 16
      spdsl bench documents --input doc=ids.npz --groups 2 --json
      spdsl bench streaming -p window=256 -n 2048 --no-backward
    """
    heads, groups = head_counts(heads, groups)
    if dtype is not None:
        known_dtype(dtype)
    values = parse_parameters(parameter)
    loaded, values = load_pattern(pattern, values)
    from spdsl.cli.measure import device_of
    from spdsl.cli.race import Race, race
    from spdsl.cli.tensors import length_of, note_generated
    from spdsl.samples import Sizes

    where = device_of(device)
    n = length_of(loaded, values, n, LENGTH if where.type != "cpu" else LENGTH_ON_A_CPU, layer)
    if where.type == "cpu":
        note("this times the CPU back end, which says little about a GPU" + _why(device))
    with progress("comparing with the reference", quiet=as_json, timing=True) as watch:
        result = race(
            Race(
                pattern=loaded,
                parameters=values,
                sizes=Sizes(batch=batch, heads=heads, groups=groups, nq=nq or n, n=n, head_dim=head_dim),
                value_dim=value_dim or head_dim,
                dtype=dtype or ("fp32" if where.type == "cpu" else "bf16"),
                layer=layer,
                device=where,
                data=data,
                given=tuple(given or ()),
                backward=backward,
                dense=dense,
                rounds=rounds,
                seed=seed,
            ),
            watch,
        )
    if as_json:
        print_json(result)
    else:
        note_generated(tuple(result["generated_inputs"]))
        _print(result)
    raise typer.Exit(0 if result["ok"] else 1)


def _why(asked: str) -> str:
    return "; there is no GPU here" if asked == "auto" else ""


def _print(result: dict[str, Any]) -> None:
    first = result["results"][0]
    typer.echo(f"{result['pattern']}: {first['shape']}, {first['dtype']}, on {first['gpu']}")
    typer.echo(f"pairs kept {result['kept']:.2%}; matrix product {result['matrix_rate'] * 1e-12:.3g} TFLOP/s")
    if result["checked_at"] != first["keys"]:
        typer.echo(_CHECKED if result["checked_at"] is None else f"compared with {result['checked_at']:,} keys: {_WHY}")
    typer.echo()
    head = ("", "", "ms", "useful TFLOP/s", "floor ms", "of the floor", "kept of computed", "error")
    print_table(head, (_line(row) for row in result["results"]))
    for direction, factor in result["faster_than_dense"].items():
        typer.echo(f"{_NAMES[direction]}: {factor:.{2 if factor >= 0.1 else 4}f} times as fast as dense attention")
    if result["selection_ms"] is not None:
        share = result["selection_ms"] / first["ms"]
        typer.echo(f"the selection alone: {result['selection_ms']:.3f} ms, {share:.0%} of the forward call")
    if result["near_ties"]["rows"]:
        typer.echo(
            "near ties: {rows} of {of} rows have other keys, and no part in the errors".format(**result["near_ties"])
        )
    if not result["ok"]:
        typer.echo(styled("an error is above its limit", fg=typer.colors.RED, bold=True))


_WHY = "what a row keeps may depend on all others, and the dense reference holds all pairs"
_CHECKED = (
    "not compared with the reference: it would have to hold all pairs, and inputs or a grid fix how many there are"
)
_NAMES = {"fwd": "forward", "bwd": "backward"}


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["impl"],
        _NAMES[row["direction"]],
        f"{row['ms']:.3f}",
        f"{row['tflops_useful']:.3g}",
        f"{row['floor_ms']:.3f}",
        f"{row['floor_ms'] / row['ms']:.0%}",
        f"{row['useful_over_computed']:.1%}",
        "" if row["error"] is None else f"{row['error']:.1e}",
    )
