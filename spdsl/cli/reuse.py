"""`spdsl reuse`: which layers of a model can read what earlier layers have chosen."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spdsl.cli.files import write_whole
from spdsl.cli.loading import load_pattern
from spdsl.cli.options import JsonOption, ParameterOption, Value, parse_parameters
from spdsl.cli.output import print_json, print_table
from spdsl.cli.progress import progress
from spdsl.diagnostics import SpatError, error
from spdsl.reuse_plan import Measured, ReusePlan, best_plans, fewest_full

if TYPE_CHECKING:
    import torch

    from spdsl.api import Attention
    from spdsl.reuse_search import Search

_AS_ELSEWHERE = "as elsewhere, for example `reuse.spat:{}`"


def reuse(
    chooses: Annotated[
        str | None,
        typer.Argument(help=f"A full pattern with an export, {_AS_ELSEWHERE.format('chooses')}.", metavar="CHOOSES"),
    ] = None,
    reads: Annotated[
        str | None,
        typer.Argument(metavar="READS", help=f"A pattern with an input of its name, {_AS_ELSEWHERE.format('reads')}."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a causal language model of transformers, with its tokenizer.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A text file to measure on.")] = None,
    parameter: ParameterOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text that are used.", min=2)] = 1024,
    within: Annotated[float, typer.Option(help="The share by which perplexity may grow.", min=0)] = 0.01,
    measured: Annotated[
        Path | None,
        typer.Option(help="Where measurements are kept, layer by layer: what is there is not measured again."),
    ] = None,
    device: Annotated[str, typer.Option(help="One of cpu, cuda; cuda where there is one.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Plan which layers of a model attend in full, and which read what the last of these has chosen.

    Measures what the model loses when each layer reads, plans by dynamic programming, and measures a few of the plans.
    Without a model, plans are made of a file of measurements, and losses are estimates.

    \b
    Examples:
      spdsl reuse my.spat:chooses my.spat:reads --model DIR --text FILE --measured m.json
      spdsl reuse --measured m.json --within 0.02
    """
    if chooses is None or reads is None or model is None or text is None:
        if measured is None or any(each is not None for each in (chooses, reads, model, text)):
            raise typer.BadParameter("give CHOOSES, READS, --model and --text; or --measured alone, to plan again")
        found, _ = _read(measured)
        if len(found.lost) < len(found.held):
            raise error(
                "SP644",
                f"`{measured}` holds the losses of {len(found.lost)} of {len(found.held)} layers",
                help="measure the others: give CHOOSES, READS, --model and --text, too",
            )
        _show(found, fewest_full(best_plans(found.readers), within), None, within, as_json=as_json)
        return
    values = parse_parameters(parameter)
    choosing, reading = _pattern(chooses, values), _pattern(reads, values)
    _refuse_unknown(values, choosing.takes | reading.takes)
    words = _words(text)
    from spdsl.cli.measure import device_of
    from spdsl.reuse_search import find, refuse_strangers

    refuse_strangers(choosing.attention, reading.attention)
    where = device_of(device)
    with progress("loading the model", quiet=as_json) as watch:
        network, ids = _loaded(model, words, tokens, where)
        title = {
            "model": model.name,
            "patterns": [str(choosing.attention), str(reading.attention)],
            "text": sha256(words.encode()).hexdigest()[:16],
            "tokens": ids.shape[1],
        }
        known = None
        if measured is not None and measured.exists():
            known, of = _read(measured)
            if of != title:
                raise error(
                    "SP644",
                    f"`{measured}` holds measurements of something else: {_differing(of, title)}",
                    help="name another file",
                )

        latest: list[Measured] = []

        def keep(found: Measured) -> None:
            latest.append(found)
            if measured is not None:
                write_whole(measured, json.dumps({"of": title, **found.as_dict()}, indent=1) + "\n")

        search = find(
            network,
            ids,
            choosing.attention,
            reading.attention,
            within=within,
            known=known,
            tell=lambda said: watch(said, len(latest[-1].lost) if latest else 0, None),
            keep=keep,
        )
    _show(latest[-1], search.best.plan, search, within, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """A pattern of the command line, and the names of its parameters."""

    attention: Attention
    takes: frozenset[str]


def _pattern(word: str, values: dict[str, Value]) -> _Given:
    loaded, fitted = load_pattern(word, values)
    from spdsl.api import compile

    takes = frozenset(loaded.parameters)
    own: dict[str, Any] = {name: value for name, value in fitted.items() if name in takes}
    return _Given(attention=compile(loaded, **own), takes=takes)


def _refuse_unknown(values: dict[str, Value], known: frozenset[str]) -> None:
    for name in values:
        if name not in known:
            taken = ", ".join(sorted(known)) or "none"
            raise typer.BadParameter(f"neither pattern has a parameter `{name}`; they have {taken}", param_hint="-p")


def _words(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as refused:
        raise error("SP604", f"`{path}` cannot be read: {refused}", help="give a text in UTF-8") from None


def _loaded(folder: Path, words: str, tokens: int, where: torch.device) -> tuple[Any, torch.Tensor]:
    """The model, and the first tokens of the text."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise error("SP641", "transformers is not installed", help="`pip install transformers`") from None
    import torch

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Weights in one file of llama.cpp are read too.
    single = next(folder.glob("*.gguf"), None)
    if single is None and not (folder / "config.json").exists():
        raise error(
            "SP646", f"no model in `{folder}`", help="give a folder with config.json and weights, or a .gguf file"
        )
    weights = {} if single is None else {"gguf_file": single.name}
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **weights)
        network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype, **weights)
    except (OSError, ValueError) as refused:
        raise error(
            "SP646", f"no model in `{folder}`: {str(refused).splitlines()[0]}", help="give a folder of transformers"
        ) from None
    ids = tokenizer(words, return_tensors="pt").input_ids[:, :tokens]
    if ids.shape[1] < 2:
        raise error("SP646", "the text has less than two tokens", help="give a longer text")
    return network.to(where).eval(), ids.to(where)


def _read(path: Path) -> tuple[Measured, object]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as refused:
        raise error("SP604", f"`{path}` cannot be read: {refused.strerror}", help="check its name") from None
    except ValueError as mistake:
        raise _mended(path, str(mistake)) from None
    if not isinstance(record, dict):
        raise _mended(path, "no record")
    return Measured.of(record), record.get("of")


def _mended(path: Path, found: str) -> SpatError:
    return error("SP644", f"`{path}` is no measurement of layers: {found}", help="give what `--measured` has written")


def _differing(of: object, title: dict[str, Any]) -> str:
    known = of if isinstance(of, dict) else {}
    return ", ".join(
        f"{name} {known.get(name)!r}, not {value!r}" for name, value in title.items() if known.get(name) != value
    )


# ---------------------------------------------------------------- what is shown


def _show(measured: Measured, plan: ReusePlan, search: Search | None, within: float, *, as_json: bool) -> None:
    if as_json:
        tried = None if search is None else [{**each.plan.as_dict(), "lost": each.lost} for each in search.tried]
        best = plan.as_dict() | {"lost": None if search is None else search.best.lost}
        print_json({"ok": True, "within": within, "plan": best, "tried": tried, "measured": measured.as_dict()})
        return
    rows = []
    for layer, source in enumerate(plan.sources):
        if plan.full[layer]:
            readers = [each for each, of in enumerate(plan.sources) if of == layer and each != layer]
            rows.append((str(layer), "in full", f"read by {_span(readers)}" if readers else "", "", ""))
            continue
        reader = measured.readers[layer - 1]
        held = f"{reader.held[source]:.1%}"
        rows.append((str(layer), f"what {source} chose", "", held, f"{reader.estimate(source):+.4f}"))
    print_table(("layer", "attends to", "", "attention held", "loss, estimated"), rows)
    told = f"{plan.reading} of {len(plan.full)} layers read {measured.kept:.1%} of the pairs"
    typer.echo(f"{told}; perplexity {_grown(plan.estimated)} by estimate" + _really(measured, search, within))
    typer.echo(f"a choice takes {measured.list_bytes:,} bytes as lists, {measured.bool_bytes:,} as bools")


def _really(measured: Measured, search: Search | None, within: float) -> str:
    if search is None:
        return f" (limit {within:+.1%}); measured it may lose more: give a model to see"
    dense, sparse = math.exp(measured.dense), math.exp(measured.dense + search.best.lost)
    measured_too = f", {_grown(search.best.lost)} measured (limit {within:+.1%})"
    return f"{measured_too}: {dense:.3f} with all layers in full, {sparse:.3f} with this plan"


def _grown(lost: float) -> str:
    return f"{math.expm1(lost):+.2%}"


def _span(layers: list[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
