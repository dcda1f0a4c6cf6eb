"""Options that several commands share, and the values written in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from spdsl.cli.completion import parameters, patterns

if TYPE_CHECKING:
    from spdsl.semantics.nodes import CheckedPattern

Scalar: TypeAlias = bool | int | float
Value: TypeAlias = Scalar | tuple[Scalar, ...]

PATTERN_HELP = (
    "A `.spat` file (`file.spat:NAME` picks a pattern, else its last), `-` for standard input, or a library name."
)

PatternArgument = Annotated[
    str, typer.Argument(metavar="PATTERN", help=PATTERN_HELP, show_default=False, autocompletion=patterns)
]
FilesArgument = Annotated[
    list[str], typer.Argument(metavar="FILE", help=PATTERN_HELP, show_default=False, autocompletion=patterns)
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--parameter",
        metavar="NAME=VALUE",
        help="A parameter: `-p window=256`, `-p extents=8,16`.",
        autocompletion=parameters,
    ),
]
LayerOption = Annotated[int | None, typer.Option(help="The value of `layer`.", min=0)]
HeadsOption = Annotated[int, typer.Option(help="Query heads.", min=1)]
GroupsOption = Annotated[int | None, typer.Option(help="Key/value heads; as many as query heads by default.", min=1)]
HeadDimOption = Annotated[int, typer.Option("--head-dim", help="Size of a query and key vector.", min=1)]
ValueDimOption = Annotated[int | None, typer.Option("--value-dim", help="Size of a value vector, if different.", min=1)]
DTYPES = ("bf16", "fp16", "fp32")
DtypeOption = Annotated[str, typer.Option(help="One of bf16, fp16, fp32.", autocompletion=lambda: DTYPES)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

LENGTH_HELP = "Number of keys; {:,} by default, or as many as a grid of the pattern has places."

MOST_TOKENS = 1 << 26
"""Positions of more do not fit the arithmetic of the kernels."""

LENGTH = 8192
"""Keys of the calls that `tune` measures and `compile` builds for, where nothing says how many."""

_INT = re.compile(r"[+-]?\d{1,30}\Z")


def parse_parameters(given: Sequence[str] | None) -> dict[str, Value]:
    """The values of ``-p NAME=VALUE``.

    Raises:
        typer.BadParameter: one is not of that form, or its name is given twice.
    """
    values: dict[str, Value] = {}
    for word in given or ():
        name, equals, text = word.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"`-p {word}` is not of the form NAME=VALUE, for example `-p window=256`")
        if name in values:
            raise typer.BadParameter(f"the parameter `{name}` is given twice")
        values[name] = _value(name, text.strip())
    return values


def _value(name: str, text: str) -> Value:
    inner = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    if "," in inner or inner is not text:
        return tuple(_scalar(name, part.strip()) for part in inner.rstrip(",").split(","))
    return _scalar(name, text)


def _scalar(name: str, text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    if _INT.match(text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        close = difflib.get_close_matches(text.lower(), ("true", "false"), n=1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        raise typer.BadParameter(
            f"`{name}={text}` is neither a number, `true`, `false`, nor several of them with commas{hint}"
        ) from None


def parse_free(given: Sequence[str] | None) -> tuple[dict[str, Value], frozenset[str]]:
    """As `parse_parameters`, and the names of those given as ``NAME=any``.

    Raises:
        typer.BadParameter: one is not of that form, or its name is given twice.
    """
    free = [word.partition("=")[0].strip() for word in given or () if word.partition("=")[2].strip() == "any"]
    values = parse_parameters([word for word in given or () if word.partition("=")[2].strip() != "any"])
    for name in free:
        if name in values or free.count(name) > 1:
            raise typer.BadParameter(f"the parameter `{name}` is given twice")
    return values, frozenset(free)


def parse_call(word: str) -> tuple[str, list[str]]:
    """A pattern and its parameters, from ``streaming(window=64, sinks=0)``; the brackets may be left out.

    Raises:
        typer.BadParameter: brackets that do not close.
    """
    name, opening, rest = word.partition("(")
    if not opening:
        return word, []
    if not rest.rstrip().endswith(")"):
        raise typer.BadParameter(f"`{word}` does not end in `)`: write for example `streaming(window=64)`")
    inside = rest.rstrip()[:-1]
    parts = re.findall(r"(?:[^,(]|\([^)]*\))+", inside)
    return name.strip(), [part.strip() for part in parts if part.strip()]


def fit_tuples(pattern: CheckedPattern, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values, a single number made a tuple where the pattern declares a tuple of one item."""
    single = {each.name for each in pattern.parameters if each.length == 1}
    return {
        name: (value,) if name in single and not isinstance(value, tuple) else value for name, value in values.items()
    }


def known_dtype(dtype: str) -> str:
    """The dtype.

    Raises:
        typer.BadParameter: it is not one of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise typer.BadParameter(f"`{dtype}` is not one of {', '.join(DTYPES)}", param_hint="--dtype")
    return dtype


def head_counts(heads: int, groups: int | None) -> tuple[int, int]:
    """Query heads and key/value heads.

    Raises:
        typer.BadParameter: the query heads cannot be shared out evenly.
    """
    groups = heads if groups is None else groups
    if heads % groups:
        raise typer.BadParameter(f"{heads} query heads cannot be shared by {groups} groups", param_hint="--groups")
    return heads, groups
