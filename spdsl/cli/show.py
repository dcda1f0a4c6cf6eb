"""`spdsl show`: every intermediate result of the compiler."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

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
from spdsl.cli.stages import Shape, Stage, Wish, intermediate

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
    shape: Annotated[str, typer.Option(help="square (as many queries as keys), offset or batched.")] = "square",
    target: Annotated[str, typer.Option(help="sm_80, sm_90, sm_100, gfx942 or cpu.")] = "sm_90",
    as_json: JsonOption = False,
) -> None:
    """Print what a stage of the compiler makes of a pattern.

    \b
    Stages, in order:
      ast      the syntax tree
      text     the canonical text, with imports inlined
      checked  names resolved, expressions typed
      bound    parameters and head counts put in
      tiles    which tiles each kernel walks
      plan     everything that is decided before text is written
      block    the kernels in the block IR
      triton   the generated kernels
      gluon    the fused backward kernel for Hopper, where there is one

    \b
    Examples:
      spdsl show streaming --emit triton -p window=256
      spdsl show local.spat --emit tiles --heads 8 --groups 2
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
    text, record = intermediate(pattern, emit, wish)
    if as_json:
        print_json({"ok": True, "stage": emit, "result": record})
    else:
        typer.echo(text.rstrip("\n"))
