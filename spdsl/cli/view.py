"""`spdsl view`: a picture of a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spdsl.cli.loading import load_pattern
from spdsl.cli.options import (
    GroupsOption,
    HeadsOption,
    JsonOption,
    LayerOption,
    ParameterOption,
    PatternArgument,
    head_counts,
    parse_parameters,
)
from spdsl.cli.output import print_json


def view(
    pattern: PatternArgument,
    parameter: ParameterOption = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture, a PNG.")] = Path("mask.png"),
    n: Annotated[int, typer.Option("-n", help="Number of keys.", min=1, max=16384)] = 1024,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    tile: Annotated[int, typer.Option(help="Rows and columns of the tiles in the picture.", min=1)] = 64,
    heads: HeadsOption = 1,
    groups: GroupsOption = None,
    head: Annotated[int, typer.Option(help="The query head to draw.", min=0)] = 0,
    layer: LayerOption = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for inputs that are not given.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw the mask: every pair, and the tiles a kernel touches.

    \b
    Examples:
      spdsl view streaming -p window=128 -n 1024 -o mask.png
      spdsl view local.spat --tile 128 --heads 8 --head 3
      spdsl view documents --input doc=ids.npz
    """
    heads, groups = head_counts(heads, groups)
    if head >= heads:
        last = f"the last head is {heads - 1}; `--heads` says how many there are"
        raise typer.BadParameter(last, param_hint="--head")
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(f"`{output}` does not end in .png", param_hint="--output")

    loaded, values = load_pattern(pattern, parse_parameters(parameter))
    from spdsl.cli.tensors import Sizes, make_inputs, note_generated
    from spdsl.picture import draw

    sizes = Sizes(batch=1, heads=heads, groups=groups, nq=nq or n, n=n)
    inputs, generated = make_inputs(loaded, values, given, sizes, layer=layer, seed=seed)
    if not as_json:
        note_generated(generated)
    settings: dict[str, Any] = {**values, **inputs}
    mask = loaded.mask(sizes.nq, n, heads, groups, layer, **settings)
    mask = mask[0] if mask.ndim == 4 else mask
    shown = [f"{name}={value}" for name, value in {**loaded.parameters, **values}.items()]
    shown += [f"head={head}"] * (heads > 1) + [f"layer={layer}"] * (layer is not None)
    tiles = draw(
        mask[head].numpy(),
        output,
        title=loaded.name,
        subtitle=", ".join(shown),
        block_q=tile,
        block_k=tile,
        q_start=n - sizes.nq,
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
            }
        )
    else:
        typer.echo(
            f"wrote {output}: {tiles.kept_pairs:.1%} of the pairs kept, {tiles.kept_tiles:.1%} of the tiles touched, "
            f"{tiles.full_tiles:.1%} full"
        )
