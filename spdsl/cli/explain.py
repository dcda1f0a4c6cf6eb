"""`spdsl explain`: what a call would visit, counted."""

from __future__ import annotations

from typing import Annotated

import typer

from spdsl.cli.loading import load_pattern
from spdsl.cli.options import (
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
from spdsl.cli.output import print_json
from spdsl.cli.stages import TARGETS


def explain(
    pattern: PatternArgument,
    parameter: ParameterOption = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of keys.", min=1, max=MOST_TOKENS)] = 4096,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    head_dim: HeadDimOption = 64,
    value_dim: ValueDimOption = None,
    dtype: DtypeOption = "bf16",
    layer: LayerOption = None,
    target: Annotated[str, typer.Option(help=f"One of {', '.join(TARGETS)}.")] = "sm_90",
    seed: Annotated[int, typer.Option(help="Seed for inputs that are not given.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Count the tiles that kernels would touch, and the pairs that are kept.

    \b
    Examples:
      spdsl explain streaming -p window=512 -n 32768
      spdsl explain documents --input doc=ids.npz --target cpu
    """
    heads, groups = head_counts(heads, groups)
    known_dtype(dtype)
    if target not in TARGETS:
        raise typer.BadParameter(f"`{target}` is not one of {', '.join(TARGETS)}", param_hint="--target")
    loaded, values = load_pattern(pattern, parse_parameters(parameter))
    from spdsl.cli.measure import DTYPES
    from spdsl.cli.tensors import Sizes, make_inputs, note_generated, shaped
    from spdsl.explain import explain as count
    from spdsl.pipeline import key_of

    sizes = Sizes(batch=1, heads=heads, groups=groups, nq=nq or n, n=n, head_dim=head_dim)
    inputs, generated = make_inputs(loaded, values, given, sizes, layer=layer, seed=seed)
    key = key_of(loaded.checked, values, layer, None, False)

    q, k, v = shaped(sizes, value_dim or head_dim, DTYPES[dtype])
    report = count(key, q, k, v, inputs, target)
    if as_json:
        print_json({"ok": True, **report.as_dict(), "generated_inputs": list(generated)})
    else:
        note_generated(generated)
        typer.echo(report.text())
