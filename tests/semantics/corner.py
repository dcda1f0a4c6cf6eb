"""A pattern from a corner of the language, with the same set written again in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One pair: sequence, head, key/value head, query and key, and the sizes of the call."""

    b: int
    h: int
    g: int
    q: int
    k: int
    n: int
    nq: int


Kept = Callable[[Point, dict[str, Any]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """A pattern, a call of it, and whether a pair is kept, by the text of the language reference.

    ``trained`` names the inputs whose gradients are compared, too.
    """

    name: str
    text: str
    kept: Kept
    n: int
    nq: int | None = None
    batch: int = 2
    heads: int = 2
    groups: int = 1
    layer: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    trained: tuple[str, ...] = ()


def random(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bools(seed: int, shape: tuple[int, ...], share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


SEGMENT = np.sort(np.random.default_rng(3).integers(0, 5, 37)).astype(np.int32) * 2
