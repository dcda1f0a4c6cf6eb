"""`spdsl compile`: kernels as files, built without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from spdsl.cli.output import print_json, print_table
from spdsl.cli.progress import progress
from spdsl.cli.stages import TARGETS, Wish
from spdsl.cli.whole_bundle import Calls

GPU_TARGETS = tuple(target for target in TARGETS if target != "cpu")


def compile_(
    pattern: PatternArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write, or one to replace.")],
    target: Annotated[str, typer.Option(help=f"One of {', '.join(GPU_TARGETS)}.")] = "sm_90",
    dtype: DtypeOption = "bf16",
    head_dim: HeadDimOption = 128,
    value_dim: ValueDimOption = None,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    parameter: ParameterOption = None,
    layer: LayerOption = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="One of square, offset, batched; may be repeated. Square by default.")
    ] = None,
    n: Annotated[
        list[int] | None,
        typer.Option(
            "-n",
            help="Take the tiles that the model chooses for this many keys; for a pattern that selects, the kernels of "
            "such calls, and may be repeated.",
            min=1,
        ),
    ] = None,
    nq: Annotated[int | None, typer.Option(help="The number of queries with it; as many by default.", min=1)] = None,
    gpu: Annotated[str | None, typer.Option(help="The GPU for which it chooses, as it names itself.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences of a call, of a pattern that selects.", min=1)] = 1,
    backward: Annotated[bool, typer.Option(help="The kernels of gradients too, of a pattern that selects.")] = True,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE", help="An input whose shape and type count, of such a pattern."),
    ] = None,
    input_dtype: Annotated[
        str, typer.Option(help="The type of its float inputs that are not given: bf16, fp16 or fp32.")
    ] = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Write the kernels of a pattern: sources, binaries for a target, a manifest and a loader.  No GPU is needed.

    Of a pattern that selects by queries and keys these are all kernels of a call of `-n` keys: those that score and
    choose, build lists, attend, put results together, and their gradients.

    Where the folder is named in SPDSL_CACHE_PATH, or was taken over by `spdsl cache import`, its kernels are run and
    not compiled again.

    \b
    Examples:
      spdsl compile streaming -p window=1024 -o out -n 32768 --gpu "NVIDIA H200"
      spdsl compile local.spat -o out --target sm_90 --dtype bf16 --head-dim 128
      spdsl compile streaming -p window=512 -o out --target gfx942 --groups 2
      spdsl compile local.spat -o out --shape square --shape offset
      spdsl compile nsa -o out -n 4096 -n 65536 --gpu "NVIDIA H200" --heads 64 --groups 4
      spdsl compile moba -o out -n 32768 --nq 1 --no-backward
    """
    heads, groups = head_counts(heads, groups)
    if target not in GPU_TARGETS:
        raise typer.BadParameter(f"`{target}` is not one of {', '.join(GPU_TARGETS)}", param_hint="--target")
    shapes = tuple(dict.fromkeys(shape or ["square"]))
    for each in shapes:
        if each not in ("square", "offset", "batched"):
            raise typer.BadParameter(f"`{each}` is not one of square, offset, batched", param_hint="--shape")
    parameters = parse_parameters(parameter)
    wishes = [
        Wish(
            parameters=parameters,
            heads=heads,
            groups=groups,
            head_dim=head_dim,
            value_dim=value_dim or head_dim,
            dtype=known_dtype(dtype),
            layer=layer,
            shape=each,
            target=target,
        )
        for each in shapes
    ]

    calls = Calls(batch=batch, backward=backward, given=tuple(given or ()), floats=known_dtype(input_dtype))
    from spdsl.cli.bundle import write_bundle

    if gpu is not None and not n:
        raise typer.BadParameter("say for which lengths: `-n 32768 --gpu NAME`", param_hint="--gpu")
    if nq is not None and not n:
        raise typer.BadParameter("say for how many keys: `-n 32768 --nq 1`", param_hint="--nq")
    lengths = [(nq or each, each) for each in dict.fromkeys(n or ())]
    with progress("compiling", quiet=as_json) as watch:
        manifest = write_bundle(
            pattern, wishes, output, gpu=gpu, lengths=lengths, calls=None if calls == Calls() else calls, watch=watch
        )
    if as_json:
        print_json({"ok": True, "folder": str(output), "manifest": manifest})
        return
    # A kernel belongs to a shape of calls, or, of a pattern that selects, to some of the calls themselves.
    rows = [
        (
            each.get("shape") or ", ".join(each["calls"]),
            each["name"],
            each["binary"],
            *(str(each[f]) for f in ("shared_bytes", "registers", "spills")),
        )
        for each in manifest["kernels"]
    ]
    print_table(("calls", "kernel", "file", "shared memory", "registers", "spilled"), rows)
    typer.echo(f"wrote {len(manifest['kernels'])} kernels, their sources and manifest.json to {output}")
