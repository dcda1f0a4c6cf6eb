"""`spdsl view`: a picture of a mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spdsl.cli.loading import load_pattern
from spdsl.cli.options import (
    LENGTH_HELP,
    DtypeOption,
    GroupsOption,
    HeadDimOption,
    HeadsOption,
    JsonOption,
    LayerOption,
    ParameterOption,
    PatternArgument,
    Value,
    head_counts,
    known_dtype,
    parse_call,
    parse_parameters,
)
from spdsl.cli.output import note, print_json
from spdsl.cli.progress import progress
from spdsl.cli.stages import TARGETS

if TYPE_CHECKING:
    from spdsl.api import Pattern

KERNELS = ("forward", "dq", "dkdv", "fused")


LENGTH = 1024
"""Keys, where neither the command nor the pattern says how many."""


def view(
    pattern: PatternArgument,
    parameter: ParameterOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="A picture, .png or .svg, or a page, .html.")] = Path(
        "mask.png"
    ),
    n: Annotated[int | None, typer.Option("-n", help=LENGTH_HELP.format(LENGTH), min=1, max=16384)] = None,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    tile: Annotated[int, typer.Option(help="Rows and columns of the tiles in the picture.", min=1)] = 64,
    heads: HeadsOption = 1,
    groups: GroupsOption = None,
    head: Annotated[int, typer.Option(help="The query head to draw.", min=0)] = 0,
    layer: LayerOption = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            help=f"Draw the tiles that a kernel visits over the pairs. One of {', '.join(KERNELS)}; "
            "`forward.2` of a union's second set."
        ),
    ] = None,
    target: Annotated[str, typer.Option(help=f"The target of that kernel. One of {', '.join(TARGETS)}.")] = "sm_90",
    head_dim: HeadDimOption = 64,
    dtype: DtypeOption = "bf16",
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for inputs that are not given.")] = 0,
    real: Annotated[
        Path | None,
        typer.Option(
            "--qk",
            metavar="FILE",
            help="A file with `q` and `k` of (heads, tokens, dim): draw what is chosen for them.",
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="In a page, a second pattern, with its parameters in brackets."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the mask: every pair, and the tiles a kernel touches.

    A page is one file that needs no network: it zooms from tiles to pairs, moves parameters, lengths, tiles and heads,
    and shows the order in which tiles are walked, forward and backward.

    \b
    Examples:
      spdsl view streaming -p window=128 -n 1024 -o mask.png
      spdsl view local.spat --tile 128 --heads 8 --head 3
      spdsl view documents --input doc=ids.npz
      spdsl view moba -p block=64 --qk layer3.pt --head 2 -o chosen.png
      spdsl view dilated --kernel dkdv --head-dim 128
      spdsl view streaming -o mask.html --beside "sliding_window(window=256)"
    """
    if real is not None:
        from spdsl.cli.tensors import queries_and_keys

        wanted = (heads, groups)

        tensors = queries_and_keys(real)
        (heads, rows, head_dim), (groups, columns, _) = (each.shape[1:] for each in tensors)
        if n not in (None, columns) or nq not in (None, rows):
            raise typer.BadParameter(f"`{real}` has {rows} queries and {columns} keys", param_hint="-n")
        if wanted[0] not in (1, heads) or wanted[1] not in (None, groups):
            raise typer.BadParameter(f"`{real}` has {heads} query and {groups} key heads", param_hint="--heads")
        if heads % groups:
            help = f"`{real}` has {heads} query heads, which {groups} key heads cannot share"
            raise typer.BadParameter(help, param_hint="--qk")
        n, nq = columns, rows
    heads, groups = head_counts(heads, groups)
    if head >= heads:
        last = f"the last head is {heads - 1}; `--heads` says how many there are"
        raise typer.BadParameter(last, param_hint="--head")
    if output.suffix.lower() not in (".png", ".svg", ".html"):
        raise typer.BadParameter(f"`{output}` ends neither in .png, .svg nor .html", param_hint="--output")
    if beside is not None and output.suffix.lower() != ".html":
        raise typer.BadParameter("two patterns stand side by side in a page: `-o mask.html`", param_hint="--beside")

    known_dtype(dtype)
    if kernel is not None and kernel.partition(".")[0] not in KERNELS:
        raise typer.BadParameter(f"`{kernel}` is not one of {', '.join(KERNELS)}", param_hint="--kernel")
    if target not in TARGETS:
        raise typer.BadParameter(f"`{target}` is not one of {', '.join(TARGETS)}", param_hint="--target")
    loaded, values = load_pattern(pattern, parse_parameters(parameter))
    from spdsl.cli.measure import DTYPES
    from spdsl.cli.tensors import length_of, make_inputs, note_generated
    from spdsl.picture import draw
    from spdsl.pipeline import key_of
    from spdsl.samples import Sizes, drawn

    if real is not None and loaded.checked.graph is None:
        help = f"`{loaded.name}` does not look at queries and keys: leave `--qk` out"
        raise typer.BadParameter(help, param_hint="--qk")
    over_chosen = kernel is not None and loaded.checked.graph is not None and output.suffix.lower() != ".html"
    if real is None and loaded.checked.graph is not None and not over_chosen and not as_json:
        note("what stages choose counts as everything; give queries and keys with `--qk FILE` to see it")
    n = length_of(loaded, values, n, LENGTH, layer)
    sizes = Sizes(batch=1, heads=heads, groups=groups, nq=nq or n, n=n, head_dim=head_dim)
    inputs, generated = make_inputs(loaded, values, given, sizes, layer=layer, seed=seed)
    if over_chosen:
        from spdsl.cli.drawing import refuse_many

        refuse_many(loaded.name, n)
    if over_chosen and real is None:
        tensors = drawn(sizes, head_dim, DTYPES[dtype], seed)[:2]
        generated = (*generated, "q", "k")
    if not as_json:
        note_generated(generated)
    if output.suffix.lower() == ".html":
        from spdsl.cli.viewing import Look, write_page

        look = Look(
            sizes=sizes,
            layer=layer,
            head=head,
            dtype=dtype,
            target=target,
            tile=tile,
            given=tuple(given or ()),
            seed=seed,
            real=None if real is None else tensors,
        )
        with progress("planning kernels and drawing", quiet=as_json):
            told = write_page(output, [(loaded, values), *([] if beside is None else [_other(beside)])], look)
        if as_json:
            print_json({"ok": True, "file": str(output), **told, "generated_inputs": list(generated)})
        else:
            moves = "parameters can be moved in it" if told["worked_out"] else "its mask is that of these values"
            typer.echo(f"wrote {output} ({output.stat().st_size / 1024:,.0f} kB): {moves}; open it in a browser")
        return
    settings: dict[str, Any] = {**values, **inputs}
    if real is not None or over_chosen:
        from spdsl.showing import chosen

        mask = chosen(loaded, values, *tensors, inputs, layer=layer)
    else:
        mask = loaded.mask(sizes.nq, n, heads, groups, layer, **settings)
    mask = mask[0] if mask.ndim == 4 else mask
    shown = [f"{name}={value}" for name, value in {**loaded.parameters, **values}.items()]
    shown += [f"head={head}"] * (heads > 1) + [f"layer={layer}"] * (layer is not None)
    walked = None
    if kernel is not None:
        from spdsl.cli.drawing import walked as walk

        key = key_of(loaded.checked, values, layer, None, False)
        chosen_by = tensors if over_chosen else None
        walked = walk(key, sizes, inputs, kernel, head=head, dtype=dtype, target=target, chosen_by=chosen_by)
    tiles = draw(
        mask[head].numpy(),
        output,
        title=loaded.name,
        subtitle=", ".join(shown),
        block_q=tile,
        block_k=tile,
        q_start=n - sizes.nq,
        walked=walked,
    )
    if as_json:
        print_json(
            {
                "ok": True,
                "file": str(output),
                "kept_pairs": tiles.kept_pairs,
                "touched_tiles": tiles.kept_tiles,
                "full_tiles": tiles.full_tiles,
                "generated_inputs": list(generated),
                "kernel": None if walked is None else {"kind": kernel, "touched": walked.touched, "full": walked.full},
            }
        )
    elif walked is not None:
        typer.echo(
            f"wrote {output}: {tiles.kept_pairs:.1%} of the pairs kept; {walked.title} visits {walked.touched:,} "
            f"tiles, {walked.full:,} of them full"
        )
    else:
        typer.echo(
            f"wrote {output}: {tiles.kept_pairs:.1%} of the pairs kept, {tiles.kept_tiles:.1%} of the tiles touched, "
            f"{tiles.full_tiles:.1%} full"
        )


def _other(word: str) -> tuple[Pattern, dict[str, Value]]:
    name, parameters = parse_call(word)
    return load_pattern(name, parse_parameters(parameters))
