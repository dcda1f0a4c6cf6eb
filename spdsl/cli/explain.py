"""`spdsl explain`: what a call would visit, counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
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
    PatternArgument,
    Value,
    ValueDimOption,
    head_counts,
    known_dtype,
    parse_parameters,
)
from spdsl.cli.output import print_json, print_table
from spdsl.cli.stages import TARGETS

if TYPE_CHECKING:
    from torch import Tensor

    from spdsl.analysis.device import DeviceProfile
    from spdsl.api import Pattern
    from spdsl.runtime.calls import Call
    from spdsl.samples import Sizes
    from spdsl.whatif import Row


LENGTH = 4096
"""Keys, where neither the command nor the pattern says how many."""


def explain(
    pattern: PatternArgument,
    parameter: ParameterOption = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help=LENGTH_HELP.format(LENGTH), min=1, max=MOST_TOKENS)] = None,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    head_dim: HeadDimOption = 64,
    value_dim: ValueDimOption = None,
    dtype: DtypeOption = "bf16",
    layer: LayerOption = None,
    target: Annotated[str, typer.Option(help=f"One of {', '.join(TARGETS)}.")] = "sm_90",
    gpu: Annotated[
        str | None, typer.Option(help="The GPU whose time is predicted, as it names itself; else one of the target.")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=V,V,…", help="What if: a table over n, heads, head_dim or a parameter; may repeat."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the table into this PNG file.")] = None,
    every: Annotated[
        bool, typer.Option("--candidates", help="Predict every choice of tiles that kernels may take.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed for inputs that are not given.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Count the tiles that kernels would touch and the pairs that are kept, and predict times.

    \b
    Examples:
      spdsl explain streaming -p window=512 -n 32768
      spdsl explain streaming --over n=8192,65536 --over window=64,256 --plot t.png
      spdsl explain documents --input doc=ids.npz --target cpu
    """
    heads, groups = head_counts(heads, groups)
    known_dtype(dtype)
    if target not in TARGETS:
        raise typer.BadParameter(f"`{target}` is not one of {', '.join(TARGETS)}", param_hint="--target")
    loaded, values = load_pattern(pattern, parse_parameters(parameter))
    from spdsl.cli.measure import DTYPES
    from spdsl.cli.tensors import MANY, fixed_length, length_of, make_inputs, note_generated, shorter_inputs
    from spdsl.costs import device_for
    from spdsl.explain import call_like
    from spdsl.explain import explain as count
    from spdsl.foretold import Foretelling
    from spdsl.pipeline import key_of, listed_key
    from spdsl.reuse import given_as_lists
    from spdsl.samples import Sizes, shaped
    from spdsl.whatif import growth

    n = length_of(loaded, values, n, LENGTH, layer)
    sizes = Sizes(batch=1, heads=heads, groups=groups, nq=nq or n, n=n, head_dim=head_dim)
    ratio, square = heads // groups, nq is None
    inputs, generated = make_inputs(loaded, values, given, sizes, layer=layer, seed=seed, most=MANY)
    key = key_of(loaded.checked, values, layer, None, False)
    lists = given_as_lists(loaded.checked.tables, inputs)
    key = listed_key(key, lists) if lists else key

    def changed(changes: Mapping[str, int]) -> tuple[Sizes, dict[str, Value]]:
        """Other sizes and parameters."""
        names = {"n": sizes.n, "heads": heads, "head_dim": head_dim}
        own = names | {name: value for name, value in changes.items() if name in names}
        other = Sizes(
            batch=1,
            heads=own["heads"],
            groups=max(1, own["heads"] // ratio),
            nq=own["n"] if square else sizes.nq,
            n=own["n"],
            head_dim=own["head_dim"],
        )
        return other, {**values, **{name: value for name, value in changes.items() if name not in names}}

    def made(given_values: dict[str, Value], other: Sizes) -> Mapping[str, Tensor]:
        """The inputs of other sizes: what is given, as far as these reach."""
        if other == sizes and given_values == values:
            return inputs
        return shorter_inputs(loaded, given_values, inputs, generated, other, layer, seed)

    def told_with(changes: Mapping[str, int]) -> Foretelling:
        """A call with other sizes or parameters, of a pattern with stages."""
        other, given_values = changed(changes)
        own = key_of(loaded.checked, given_values, layer, None, False)
        return Foretelling(
            key=listed_key(own, lists) if lists else own,
            sizes=other,
            value_dim=value_dim or other.head_dim,
            dtype=DTYPES[dtype],
            inputs=partial(made, given_values),
            target=target,
            gpu=gpu,
            seed=seed,
            fixed=fixed_length(loaded, given_values, layer) is not None,
        )

    def call_with(changes: Mapping[str, int]) -> Call:
        """The call with other sizes or parameters."""
        other, given_values = changed(changes)
        inputs, _ = make_inputs(loaded, given_values, given, other, layer=layer, seed=seed)
        other_key = key_of(loaded.checked, given_values, layer, None, False)
        other_key = listed_key(other_key, lists) if lists else other_key
        return call_like(other_key, *shaped(other, value_dim or other.head_dim, DTYPES[dtype]), inputs, target)

    if (over or plot) and target == "cpu":
        message = "times are predicted for GPUs; name another target"
        raise typer.BadParameter(message, param_hint="--over" if over else "--plot")
    values_of = _parsed(over or ["n=4096,8192,16384,32768,65536"])
    same = {"n": f"{n:,} tokens", "heads": f"{heads} heads", "head_dim": f"head dim {head_dim}"}
    fixed = ", ".join([words for name, words in same.items() if name not in values_of] + [dtype])
    if loaded.checked.graph is not None:
        from spdsl.cli.explain_stages import tell, tell_table

        if plot:
            message = f"no picture is drawn of the times of `{loaded.name}`, which selects by scores; see `--over`"
            raise typer.BadParameter(message, param_hint="--plot")
        if every:
            message = f"choices of tiles of `{loaded.name}`, which selects, are not predicted; see `spdsl tune`"
            raise typer.BadParameter(message, param_hint="--candidates")
        if over:
            where = f"{fixed}, predicted for {device_for(target, gpu).name}"
            tell_table(told_with, values_of, where, as_json=as_json)
        else:
            tell(told_with({}), generated, as_json=as_json)
        return
    q, k, v = shaped(sizes, value_dim or head_dim, DTYPES[dtype])

    if over or plot:
        _what_if(call_with, values_of, device_for(target, gpu), plot, loaded.name, fixed, as_json)
        return
    if every:
        if target == "cpu":
            raise typer.BadParameter("times are predicted for GPUs; name another target", param_hint="--candidates")
        _candidates(call_with({}), target, device_for(target, gpu), as_json)
        return
    report = count(key, q, k, v, inputs, target, gpu=gpu)
    grows = None
    gridded = fixed_length(loaded, values, layer) is not None
    if target != "cpu" and square and not gridded and not generated and not given:
        grows = growth(lambda n: call_with({"n": n}), device_for(target, gpu), beyond=_largest(values, loaded))
    if as_json:
        law = None if grows is None else {"tiles": str(grows.tiles), "seconds": str(grows.seconds), "step": grows.step}
        print_json({"ok": True, **report.as_dict(), "growth": law, "generated_inputs": list(generated)})
    else:
        note_generated(generated)
        typer.echo(report.text())
        if grows is not None:
            typer.echo("\n".join(grows.lines()))


def _candidates(call: Call, target: str, device: DeviceProfile, as_json: bool) -> None:
    from spdsl.choices import KINDS, candidate_times, record_of
    from spdsl.trials import text_of

    times = {kind: candidate_times(kind, call.plan, call, device, target) for kind in KINDS}
    if as_json:
        rows = [
            {"kind": kind, "tiles": record_of(((kind, tiles),))[kind], "seconds": seconds}
            for kind in KINDS
            for tiles, seconds in times[kind].items()
        ]
        print_json({"ok": True, "device": device.name, "origin": device.origin, "candidates": rows})
        return
    table = []
    for kind in KINDS:
        own = getattr(call.plan, kind).tiles
        for tiles, seconds in sorted(times[kind].items(), key=lambda each: each[1]):
            table.append((kind, text_of(tiles), f"{seconds * 1e3:.4f}", "the plan's own" if tiles == own else ""))
    print_table(("kernel", "tiles", "predicted, ms", ""), table)
    typer.echo(f"predicted for {device.name}")


def _parsed(over: Sequence[str]) -> dict[str, list[int]]:
    """The values of ``--over NAME=V,V``.

    Raises:
        typer.BadParameter: one is not of that form.
    """
    found = {}
    for word in over:
        name, _, text = word.partition("=")
        try:
            found[name.strip()] = [int(each) for each in text.split(",")]
        except ValueError:
            raise typer.BadParameter(f"`{word}` is not of the form NAME=V,V", param_hint="--over") from None
    return found


def _largest(values: Mapping[str, Value], pattern: Pattern) -> int:
    """A length past which no parameter reaches."""
    numbers = [*values.values(), *pattern.parameters.values()]
    return 4 * max((each for each in numbers if type(each) is int), default=1)


def _what_if(
    make: Callable[[Mapping[str, int]], Call],
    over: Mapping[str, Sequence[int]],
    device: DeviceProfile,
    plot: Path | None,
    name: str,
    fixed: str,
    as_json: bool,
) -> None:
    from spdsl.whatif import as_dict, table
    from spdsl.whatif import plot as draw

    rows = table(make, over, device)
    if plot is not None:
        draw(rows, plot, f"{name}: {fixed}, predicted for {device.name}")
    if as_json:
        print_json({"ok": True, "device": device.name, "origin": device.origin, "rows": as_dict(rows)})
        return
    heads = (*over, "forward", "backward", "dense forward", "dense backward", "faster by")
    print_table(heads, [_cells(row, over) for row in rows])
    typer.echo(
        f"milliseconds for {fixed}, predicted for {device.name}" + (f"; drawn into {plot}" if plot is not None else "")
    )


def _cells(row: Row, over: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    found = row.prediction
    times = (found.forward, found.backward, found.dense_forward, found.dense_backward)
    faster = (found.dense_forward / found.forward, found.dense_backward / found.backward)
    return (
        *(f"{row.values[name]:,}" for name in over),
        *(f"{each * 1e3:.3f}" for each in times),
        " / ".join(f"{each:.1f}" for each in faster),
    )
