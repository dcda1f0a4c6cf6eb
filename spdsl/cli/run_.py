"""`spdsl run`: a pattern on tensors, checked against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    PatternArgument,
    ValueDimOption,
    head_counts,
    known_dtype,
    parse_parameters,
)
from spdsl.cli.output import print_json, styled
from spdsl.cli.progress import progress

LENGTH = 1024
"""Keys, where neither the command nor the pattern says how many."""


def run(
    pattern: PatternArgument,
    parameter: ParameterOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Take q, k, v and inputs by these names from an .npz or .pt file.")
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help=LENGTH_HELP.format(LENGTH), min=1, max=MOST_TOKENS)] = None,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Sequences.", min=1)] = 1,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    head_dim: HeadDimOption = 64,
    value_dim: ValueDimOption = None,
    dtype: DtypeOption = "fp32",
    layer: LayerOption = None,
    backend: Annotated[str | None, typer.Option(help="One of cpu, triton; the best for the device by default.")] = None,
    device: Annotated[str, typer.Option(help="One of cpu, cuda; cuda where there is one.")] = "auto",
    backward: Annotated[bool, typer.Option("--backward", help="Also compute and check the gradients.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare with the float64 reference.")] = True,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Save the result, as .npz or .pt.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random tensors.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compute attention with a pattern, on random tensors or on yours, and check it against the reference.

    Prints the time of a call after the first, the share of the pairs that is
    kept, and the error ‖out − ref‖ / ‖ref‖; the exit status is 1 if that is
    above the limit for the element type. Of patterns that select by scores,
    rows whose choice was nearly a tie are told and left out.

    \b
    Examples:
      spdsl run streaming -p window=256
      spdsl run local.spat -n 4096 --heads 8 --groups 2 --dtype bf16 --backward
      spdsl run documents --data batch.npz -o out.npz
    """
    heads, groups = head_counts(heads, groups)
    known_dtype(dtype)
    if output is not None and output.suffix not in (".npz", ".pt"):
        raise typer.BadParameter(f"`{output}` ends neither in .npz nor in .pt", param_hint="--output")
    values = parse_parameters(parameter)

    loaded, values = load_pattern(pattern, values)
    from spdsl.cli.measure import Task, carry_out, save
    from spdsl.cli.tensors import length_of, note_generated
    from spdsl.samples import Sizes

    n = length_of(loaded, values, n, LENGTH, layer)
    task = Task(
        pattern=loaded,
        parameters=values,
        sizes=Sizes(batch=batch, heads=heads, groups=groups, nq=nq or n, n=n, head_dim=head_dim),
        value_dim=value_dim or head_dim,
        dtype=dtype,
        layer=layer,
        backend=backend,
        device=device,
        data=data,
        given=tuple(given or ()),
        seed=seed,
        backward=backward,
        check=check,
    )
    with progress("computing", quiet=as_json, timing=True) as watch:
        result, tensors = carry_out(task, watch)
    if output is not None:
        save(output, tensors)
    if as_json:
        print_json(result)
    else:
        note_generated(tuple(result["generated_inputs"]))
        _print(result)
    raise typer.Exit(0 if result["ok"] else 1)


def _print(result: dict[str, Any]) -> None:
    shape = result["shape"]
    typer.echo(
        f"{result['pattern']}: q {shape['q']}, k {shape['k']}, v {shape['v']}, {result['dtype']}, "
        f"{result['backend']} on {result['device']}"
    )
    for name, seconds in result["seconds"].items():
        typer.echo(f"{name + ' time':<15}{seconds * 1e3:9.2f} ms")
    kept = result["kept_pairs"]
    for name, share in kept.items() if isinstance(kept, dict) else (("", kept),):
        typer.echo(f"{f'kept by {name}' if name else 'kept pairs':<15}{share:9.2%}")
    for name, each in result["errors"].items():
        verdict = "" if each["error"] <= each["limit"] else styled("   TOO LARGE", fg=typer.colors.RED, bold=True)
        typer.echo(f"{'error of ' + name:<15}{each['error']:9.1e}  (limit {each['limit']:.0e}){verdict}")
    ties = result["near_ties"]
    if ties is not None and ties["rows"]:
        typer.echo(f"{'left out':<15}{ties['rows']:9,}  of {ties['of']:,} rows, which chose otherwise: near ties")
    if not result["errors"]:
        typer.echo("not compared with the reference")
