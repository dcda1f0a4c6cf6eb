"""The stages of the compiler in order: text → program → checked → bound → plan.

The table of contents of the compiler, and its caches; what a stage does is in its own module.  `spdsl.codegen` takes
plans on to kernels, and the engines of `spdsl.runtime` do so when they meet a plan for the first time.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache

from spdsl.grammar.parse import parse
from spdsl.semantics.bind import bind
from spdsl.semantics.check import check
from spdsl.semantics.nodes import BoundPattern, CheckedPattern

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
    """The string that stands for a pattern with its parameters in operators and caches."""
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
        }
    )


@lru_cache(maxsize=512)
def bound(key: str, heads: int, groups: int, head_dim: int) -> BoundPattern:
    """The pattern of a key, bound to the sizes of a call."""
    fields = json.loads(key)
    return bind(
        recall(fields["text"], fields["name"]),
        {name: tuple(value) if isinstance(value, list) else value for name, value in fields["parameters"].items()},
        layer=fields["layer"],
        heads=heads,
        groups=groups,
        head_dim=head_dim,
    )
