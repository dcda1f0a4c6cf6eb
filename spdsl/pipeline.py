"""The stages of the compiler in order: text → program → checked → bound → plan.

The table of contents of the compiler, and its caches; what a stage does is in its own module.  `spdsl.codegen` takes
plans on to kernels, and the engines of `spdsl.runtime` do so when they meet a plan for the first time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from spdsl.diagnostics import error
from spdsl.grammar.parse import parse
from spdsl.semantics.bind import bind
from spdsl.semantics.check import check
from spdsl.semantics.free import fits, reasons_to_fix
from spdsl.semantics.given import parameter_values
from spdsl.semantics.lifetimes import Lifetimes, lifetimes
from spdsl.semantics.nodes import BoundPattern, CheckedPattern
from spdsl.semantics.softmaxes import softmax_pattern
from spdsl.semantics.tilewise import Tilewise, tilewise

Value = bool | int | float | tuple[bool | int | float, ...]


def read(
    text: str, *, source: str = "<string>", name: str | None = None, resolve: Callable[[str], str] | None = None
) -> CheckedPattern:
    """Parse and check ``text``; ``name`` picks a pattern, else the last one counts.

    Raises:
        SpatError: with everything that is wrong with the text.
    """
    return check(parse(text, source), name, resolve=resolve)


_read_here: OrderedDict[tuple[str, str], CheckedPattern] = OrderedDict()
"""Patterns by canonical text and name, as they were read: their places are those of the user's file."""


def recall(text: str, name: str) -> CheckedPattern:
    """The pattern of a canonical, self-contained text; the one that was read in this process if there is one."""
    return _read_here.get((text, name)) or _recalled(text, name)


@lru_cache(maxsize=512)
def _recalled(text: str, name: str) -> CheckedPattern:
    return read(text, source=f"{name}.spat", name=name)


def key_of(
    pattern: CheckedPattern,
    parameters: Mapping[str, Value],
    layer: int | None,
    backend: str | None,
    deterministic: bool,
) -> str:
    """The string that stands for a pattern with all its parameters; see `opened` for that of the operators."""
    _read_here[pattern.text, pattern.name] = pattern
    if len(_read_here) > 512:
        _read_here.popitem(last=False)
    return json.dumps(
        {
            "name": pattern.name,
            "parameters": {name: parameters[name] for name in sorted(parameters)},
            "layer": layer,
            "backend": backend,
            "deterministic": deterministic,
            "text": pattern.text,
            "free": [],
        }
    )


@lru_cache(maxsize=512)
def opened(key: str) -> tuple[str, tuple[int, ...]]:
    """The key without the values of parameters that may be free, which it names, and these values in order."""
    fields, values = json.loads(key), values_of(key)
    free = [name for name in values if name not in reasons(key)]
    fixed = {name: values[name] for name in sorted(values) if name not in free}
    return json.dumps(fields | {"parameters": fixed, "free": free}), tuple(_int(values[name]) for name in free)


def _int(value: Value) -> int:
    assert isinstance(value, int)
    return value


@lru_cache(maxsize=512)
def closed(key: str, values: tuple[int, ...]) -> str:
    """The key with the values of its free parameters: the opposite of `opened`."""
    fields = json.loads(key)
    parameters = fields["parameters"] | dict(zip(fields["free"], values, strict=True))
    return json.dumps(fields | {"parameters": {name: parameters[name] for name in sorted(parameters)}, "free": []})


def reasons(key: str) -> dict[str, str]:
    """Why parameters of a key's pattern become constants of its kernels, by name; the others are free."""
    fields = json.loads(key)
    found = {name: "the value is too large" for name, value in values_of(key).items() if not fits(value)}
    return found | reasons_to_fix(recall(fields["text"], fields["name"]))


def values_of(key: str) -> dict[str, Value]:
    """All parameters of a key that leaves none open, with defaults where none is given."""
    fields = json.loads(key)
    return parameter_values(recall(fields["text"], fields["name"]), _given(fields))


def free_names(key: str) -> tuple[str, ...]:
    """The parameters that a key leaves open, in the order of their values."""
    return tuple(json.loads(key)["free"])


def _given(fields: Mapping[str, Any]) -> dict[str, Value]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in fields["parameters"].items()}


@lru_cache(maxsize=512)
def bound(key: str, heads: int, groups: int, head_dim: int) -> BoundPattern:
    """The pattern of a key, bound to the sizes of a call; parameters that the key leaves open stay so."""
    fields = json.loads(key)
    found = bind(
        recall(fields["text"], fields["name"]),
        _given(fields),
        layer=fields["layer"],
        heads=heads,
        groups=groups,
        head_dim=head_dim,
        free=fields["free"],
    )
    if "listed" in fields:
        # The values of these inputs are lists: see `spdsl.reuse`.
        tables = tuple(replace(table, listed=table.name in fields["listed"]) for table in found.tables)
        found = replace(found, tables=tables)
    if "tilewise" in fields:
        order = tilewise(found)
        assert order is not None
        found = order.pattern
    if "lifetimes" in fields:
        lives = lifetimes(found)
        assert lives is not None
        found = lives.pattern
    return softmax_pattern(found, fields["softmax"]) if "softmax" in fields else found


def listed_key(key: str, names: Sequence[str]) -> str:
    """The key of a pattern whose inputs of these names are given as lists."""
    return json.dumps(json.loads(key) | {"listed": sorted(names)})


@lru_cache(maxsize=512)
def order_of(key: str, heads: int, groups: int, head_dim: int) -> tuple[str, Tilewise] | None:
    """The key of the pattern over tokens in the order of their tiles, and that order, where nothing else counts."""
    found = tilewise(bound(key, heads, groups, head_dim))
    return None if found is None else (json.dumps(json.loads(key) | {"tilewise": True}), found)


@lru_cache(maxsize=512)
def lives_of(key: str, heads: int, groups: int, head_dim: int) -> tuple[str, Lifetimes] | None:
    """The key of the pattern by lifetimes of keys, and what these are of, where its selection has some."""
    found = lifetimes(bound(key, heads, groups, head_dim))
    return None if found is None else (json.dumps(json.loads(key) | {"lifetimes": True}), found)


@lru_cache(maxsize=512)
def softmax_key(key: str, name: str) -> str:
    """The key of one softmax of a pattern with stages."""
    return json.dumps(json.loads(key) | {"softmax": name})


def softmax_keys(key: str) -> tuple[str, ...]:
    """The keys of the softmaxes of a pattern with stages; of one without, its own key."""
    fields = json.loads(key)
    graph = recall(fields["text"], fields["name"]).graph
    if graph is None or "softmax" in fields:
        return (key,)
    return tuple(softmax_key(key, stage.name) for stage in graph.attentions)


def refuse_stages(key: str) -> None:
    """Refuse to take a pattern with stages for one softmax.  Raises `SpatError` (SP290)."""
    fields = json.loads(key)
    pattern = recall(fields["text"], fields["name"])
    if pattern.graph is not None and "softmax" not in fields:
        raise error(
            "SP290",
            f"`{pattern.name}` has stages that depend on queries and keys, which this command does not take yet",
            pattern.span,
            help="`spdsl explain` and `spdsl show` (`--emit plan`, `--emit tiles`) tell how it is "
            "computed; `spdsl compile` builds what a call launches, and `spdsl tune` tunes its softmaxes",
        )
