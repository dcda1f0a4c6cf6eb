"""Subjects of proofs from bare expressions, and tables that fit what an example says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spdsl.analysis.examples import Example
from spdsl.analysis.pairs import Subject
from spdsl.semantics.nodes import Attend, BoundPattern, Table
from tests.analysis.brute import environment, mask_of
from tests.analysis.build import Term


def subject(keep: Term, *, heads: int = 1, groups: int = 1, tables: Sequence[Table] = (), name: str = "p") -> Subject:
    pattern = BoundPattern(
        name=name,
        parameters=(),
        tables=tuple(tables),
        axes=(),
        grids=(),
        attend=Attend(keep=keep.expr),
        layer=0,
        heads=heads,
        groups=groups,
        head_dim=64,
        text="",
    )
    return Subject.of(pattern)


def masks_of(example: Example, subjects: Sequence[Subject], more: Mapping[str, Any] | None = None) -> list[np.ndarray]:
    """The masks of subjects at the lengths, heads and inputs of an example; ``more`` are tables it does not name."""
    values = {name: int(value) for name, value in example.values}
    length = values["n"]
    free = {f"p_{name}": value for name, value in values.items()}
    env = environment("square", length, h=values.get("h", 0), g=values.get("g", 0), b=values.get("b", 0), **free)
    tables = {**(more or {}), **told(example.inputs, length)}
    for name, value in values.items():
        element = re.fullmatch(r"(\w+)\[b\]", name)
        if element:
            tables[element.group(1)] = np.full(env["b"] + 1, value)
        elif re.fullmatch(r"[a-z]{2,}", name):
            tables[name] = value
    return [mask_of(each.keep, env, tables) for each in subjects]


def told(inputs: str, length: int) -> dict[str, np.ndarray]:
    """Tables as the text of an example says: ``doc[i] is i + 1 and flag is true everywhere``."""
    places = np.arange(4 * length + 4)
    found: dict[str, np.ndarray] = {}
    for part in inputs.split(" and ") if inputs else ():
        name, value = re.fullmatch(r"(\w+)(?:\[i\])? is (.*?)(?: everywhere)?", part).groups()  # type: ignore[union-attr]
        match value:
            case "true at even i":
                found[name] = places % 2 == 0
            case "true" | "false":
                found[name] = np.full(places.size, value == "true")
            case _:
                found[name] = eval(value, {"i": places}) + np.zeros(places.size, int)  # noqa: S307
    return found
