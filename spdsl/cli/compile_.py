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
        int | None, typer.Option("-n", help="Take the tiles that the model chooses for this many keys.", min=1)
    ] = None,
    nq: Annotated[int | None, typer.Option(help="The number of queries with it; as many by default.", min=1)] = None,
    gpu: Annotated[str | None, typer.Option(help="The GPU for which it chooses, as it names itself.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the kernels of a pattern: sources, binaries for a target, a manifest and a loader.  No GPU is needed.

    Where the folder is named in SPDSL_CACHE_PATH, or was taken over by `spdsl cache import`, its kernels are run and
    not compiled again.

    \b
    Examples:
      spdsl compile streaming -p window=1024 -o out -n 32768 --gpu "NVIDIA H200"
      spdsl compile local.spat -o out --target sm_90 --dtype bf16 --head-dim 128
      spdsl compile streaming -p window=512 -o out --target gfx942 --groups 2
      spdsl compile local.spat -o out --shape square --shape offset
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

    from spdsl.cli.bundle import write_bundle

    if gpu is not None and n is None:
        raise typer.BadParameter("say for which lengths: `-n 32768 --gpu NAME`", param_hint="--gpu")
    lengths = None if n is None else (nq or n, n)
    with progress("compiling", quiet=as_json) as watch:
        manifest = write_bundle(pattern, wishes, output, gpu=gpu, lengths=lengths, watch=watch)
    if as_json:
        print_json({"ok": True, "folder": str(output), "manifest": manifest})
        return
    rows = [
        (each["shape"], each["name"], each["binary"], *(str(each[f]) for f in ("shared_bytes", "registers", "spills")))
        for each in manifest["kernels"]
    ]
    print_table(("shape", "kernel", "file", "shared memory", "registers", "spilled"), rows)
    typer.echo(f"wrote {len(manifest['kernels'])} kernels, their sources and manifest.json to {output}")
