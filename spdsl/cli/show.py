"""`spdsl show`: every intermediate result of the compiler."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from spdsl.cli.loading import load_pattern
from spdsl.cli.options import (
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
from spdsl.cli.output import print_json
from spdsl.cli.stages import TARGETS, Shape, Stage, Wish, intermediate

STAGES = get_args(Stage)


def show(
    pattern: PatternArgument,
    emit: Annotated[str, typer.Option(help=f"One of {', '.join(STAGES)}.")] = "text",
    parameter: ParameterOption = None,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    head_dim: HeadDimOption = 64,
    value_dim: ValueDimOption = None,
    dtype: DtypeOption = "bf16",
    layer: LayerOption = None,
    shape: Annotated[str, typer.Option(help="One of square (as many queries as keys), offset, batched.")] = "square",
    target: Annotated[str, typer.Option(help=f"One of {', '.join(TARGETS)}.")] = "sm_90",
    n: Annotated[int | None, typer.Option("-n", help="tiles: number of keys.", min=1)] = None,
    nq: Annotated[int | None, typer.Option(help="tiles: number of queries, the last ones.", min=1)] = None,
    head: Annotated[int, typer.Option(help="tiles: the query head to draw.", min=0)] = 0,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="tiles: an input, from a file of tensors.")
    ] = None,
    seed: Annotated[int, typer.Option(help="tiles: seed for inputs that are not given.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print what a stage of the compiler makes of a pattern.

    \b
    Stages, in order:
      ast      the syntax tree
      text     the canonical text, with imports inlined
      checked  names resolved, expressions typed
      bound    parameters and head counts put in
      tiles    the tiles that each kernel walks, as a picture and in closed form
      plan     everything that is decided before text is written
      block    the kernels in the block IR
      triton   the generated kernels
      gluon    kernels for Hopper with warps of several kinds, where there are any

    \b
    Examples:
      spdsl show streaming --emit triton -p window=256
      spdsl show local.spat --emit tiles -n 4096 --heads 8 --groups 2
      spdsl show local.spat --emit ast --json
    """
    if emit not in STAGES:
        raise typer.BadParameter(f"`{emit}` is not one of {', '.join(STAGES)}", param_hint="--emit")
    if shape not in get_args(Shape):
        raise typer.BadParameter(f"`{shape}` is not one of {', '.join(get_args(Shape))}", param_hint="--shape")
    heads, groups = head_counts(heads, groups)
    wish = Wish(
        parameters=parse_parameters(parameter),
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        value_dim=value_dim or head_dim,
        dtype=known_dtype(dtype),
        layer=layer,
        shape=shape,
        target=target,
    )
    if emit == "tiles":
        _draw(pattern, wish, n, nq, head, given, seed, as_json)
        return
    text, record = intermediate(pattern, emit, wish)
    if as_json:
        print_json({"ok": True, "stage": emit, "result": record})
    else:
        typer.echo(text.rstrip("\n"))


def _draw(
    pattern: str,
    wish: Wish,
    n: int | None,
    nq: int | None,
    head: int,
    given: list[str] | None,
    seed: int,
    as_json: bool,
) -> None:
    if head >= wish.heads:
        last = f"the last head is {wish.heads - 1}; `--heads` says how many there are"
        raise typer.BadParameter(last, param_hint="--head")
    if wish.shape != "square":
        raise typer.BadParameter("the lengths -n and --nq say which shape is drawn", param_hint="--shape")
    loaded, values = load_pattern(pattern, wish.parameters)
    from rich.console import Console

    from spdsl.cli.drawing import drawings, picture, record
    from spdsl.cli.tensors import note_generated

    found = drawings(loaded, values, given, wish, n=n, nq=nq, head=head, seed=seed)
    if as_json:
        records = {each.title: record(each) for each in found}
        print_json({"ok": True, "stage": "tiles", "result": records.get("", records)})
        return
    note_generated(found[0].generated)
    console = Console(highlight=False, soft_wrap=True)
    for each in found:
        if each.title:
            console.print(f"softmax {each.title}")
        console.print(picture(each))
