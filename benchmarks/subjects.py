"""Masks and shapes on which the cost model is fitted and, apart from these, checked: random ones, and the suite."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from benchmarks.cases import SUITE, Case

Inputs = Callable[[int], dict[str, Tensor]]

BLOCK_TABLE = """
pattern block_table() {
  axis blk = token by 64
  input drawn: bool[q.blk, k.blk]
  keep drawn[q.blk, k.blk] or q.blk == k.blk
}
"""

SEGMENTS = """
pattern segments(window: int in 1..) {
  input doc: int[token] sorted
  keep causal and doc[q] == doc[k] and q - k < window
}
"""

BAND = """
pattern band(left: int in 0.. = 256, right: int in 0.. = 256) {
  keep q - k <= left and k - q <= right
}
"""

BLOCKS = """
pattern blocks(past: int in 1.. = 4) {
  axis blk = token by 128
  keep causal and q.blk - k.blk < past
}
"""

EVERY_SECOND = """
pattern every_second(span: int in 1..) {
  keep causal and q - k < span and (q - k) % 2 == 0
}
"""

CAPPED = """
pattern capped(window: int in 1.. = 1024) {
  keep causal and q - k < window
  softcap 30.0
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A mask at a shape; ``pattern`` is a library name or a text.  ``role``: the model is fitted on it, or checked, or
    its candidates are measured for the tables that ship."""

    name: str
    pattern: str
    role: Literal["fit", "check", "suite", "tune"]
    n: int
    heads: int
    dim: int
    batch: int = 1
    groups: int | None = None
    dtype: torch.dtype = torch.bfloat16
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs = lambda n: {}

    @property
    def family(self) -> tuple[object, ...]:
        """What shares plans and kernels; head counts and extents of a grid are part of these."""
        return self.pattern, self.dim, self.heads, self.groups, self.dtype, self.parameters.get("extents")

    @property
    def shape(self) -> tuple[object, ...]:
        """All on which the time of dense attention depends."""
        return self.batch, self.heads, self.groups or self.heads, self.n, self.dim, self.dtype


def _documents(mean: int, seed: int) -> Inputs:
    def make(n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        cuts = torch.rand(n, generator=generator) < 1 / mean
        return {"doc": cuts.cumsum(0).int()}

    return make


def _drawn(share: float, seed: int) -> Inputs:
    def make(n: int) -> dict[str, Tensor]:
        blocks = -(-n // 64)
        return {"drawn": torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(seed)) < share}

    return make


def _prefix(size: int) -> Inputs:
    return lambda n: {"prefix": torch.tensor([min(size, n)], dtype=torch.int32)}


def fitted() -> Iterator[Subject]:
    """Those on which the model is fitted."""
    for subject in _fitted():
        yield replace(subject, name=f"fit_{subject.name}_d{subject.dim}")


def _fitted() -> Iterator[Subject]:
    for dim in (128, 64):
        base: dict[str, Any] = {"role": "fit", "dim": dim}
        given: dict[str, Any]
        yield Subject(name="causal", pattern="causal", n=16384, heads=16, **base)
        yield Subject(name="causal_4096", pattern="causal", n=4096, heads=16, **base)
        if dim == 128:
            yield Subject(name="full", pattern="full", n=8192, heads=16, **base)
        for window in (128, 512, 2048):
            given = {"window": window}
            yield Subject(name=f"swa{window}", pattern="sliding_window", parameters=given, n=16384, heads=16, **base)
        given = {"window": 1024, "sinks": 64}
        yield Subject(name="streaming", pattern="streaming", parameters=given, n=16384, heads=16, **base)
        for mean in (500, 3000):
            made = _documents(mean, mean)
            yield Subject(name=f"documents{mean}", pattern="documents", inputs=made, n=16384, heads=16, **base)
        for share in (0.02, 0.2):
            made = _drawn(share, 7)
            yield Subject(name=f"table{share}", pattern=BLOCK_TABLE, inputs=made, n=16384, heads=16, **base)
        # Few programs for many multiprocessors.
        for n in (512, 1024, 2048, 3000):
            yield Subject(name=f"causal_{n}", pattern="causal", n=n, heads=16, **base)
            given = {"window": 700}
            yield Subject(name=f"swa700_{n}", pattern="sliding_window", parameters=given, n=n, heads=16, **base)
        for n in (1024, 2048, 3000):
            made = _documents(400, n)
            yield Subject(name=f"documents_{n}", pattern="documents", inputs=made, n=n, heads=16, **base)
            made = _drawn(0.1, n)
            yield Subject(name=f"table_{n}", pattern=BLOCK_TABLE, inputs=made, n=n, heads=16, **base)
        if dim == 128:
            for window in (512, 4096):
                given = {"window": window}
                yield Subject(name=f"capped{window}", pattern=CAPPED, parameters=given, n=16384, heads=16, **base)
            yield Subject(name="s2", pattern="s2", n=16384, heads=16, **base)
            for span in (512, 4096):
                given = {"span": span}
                yield Subject(name=f"second{span}", pattern=EVERY_SECOND, parameters=given, n=16384, heads=16, **base)
            yield Subject(name="power", pattern="power", n=16384, heads=16, **base)
            yield Subject(name="alibi", pattern="alibi", inputs=_slopes, n=8192, heads=16, **base)
            given = {"extents": (96, 96), "window": (13, 13)}
            yield Subject(name="grid2", pattern="neighborhood_2d", parameters=given, n=9216, heads=16, **base)
            given = {"extents": (16, 24, 48), "window": (7, 9, 11)}
            yield Subject(name="grid3", pattern="neighborhood_3d", parameters=given, n=18432, heads=16, **base)


def _slopes(n: int) -> dict[str, Tensor]:
    return {"slope": torch.linspace(0.1, 1.0, 16)}


def suite() -> Iterator[Subject]:
    """The cases of the suite; the fit has seen some of their masks, at other lengths."""
    for case in SUITE:
        yield Subject(
            name=case.name,
            pattern=case.pattern,
            role="suite",
            n=case.n,
            heads=case.heads,
            groups=None if case.groups == case.heads else case.groups,
            dim=case.dim,
            batch=case.batch,
            dtype=case.dtype,
            parameters=dict(case.parameters),
            inputs=_of_case(case),
        )


def _of_case(case: Case) -> Inputs:
    return lambda n: case.inputs(torch.device("cpu"))


def tuned() -> Iterator[Subject]:
    """Calls of which the best tiles ship with the package."""
    for heads, groups, dim in ((16, None, 128), (16, None, 64), (32, 8, 128)):
        shape: dict[str, Any] = {"role": "tune", "heads": heads, "groups": groups, "dim": dim}
        end = f"{heads}of{groups or heads}x{dim}"
        for n in (2048, 4096, 8192, 16384, 32768):
            yield Subject(name=f"tune_causal_{n}_{end}", pattern="causal", n=n, **shape)
            for window in (128, 256, 512, 1024, 2048, 4096):
                if window < n:
                    given = {"window": window}
                    name = f"tune_swa{window}_{n}_{end}"
                    yield Subject(name=name, pattern="sliding_window", parameters=given, n=n, **shape)
            for window in (1024, 4096) if groups is None else ():
                given = {"window": window, "sinks": 4}
                name = f"tune_streaming{window}_{n}_{end}"
                yield Subject(name=name, pattern="streaming", parameters=given, n=n, **shape)


def checked(count: int = 100) -> Iterator[Subject]:
    """Random masks and shapes that the fit has not seen; half are of patterns that it has not seen either."""
    draw = random.Random(20261128)  # noqa: S311  # no secret
    for number in range(count):
        yield _drawn_subject(draw, f"{number:03}", "check", (1024, 2048, 4096, 8192, 16384), _KINDS)


def drawn(count: int = 100) -> Iterator[Subject]:
    """Others for the fit, of the patterns that it sees anyway."""
    draw = random.Random(20261129)  # noqa: S311  # no secret
    for number in range(count):
        yield _drawn_subject(draw, f"fit_{number:03}", "fit", (512, 1024, 2048, 4096, 8192, 16384), _KINDS[:SEEN])


def _drawn_subject(
    draw: random.Random, number: str, role: Literal["fit", "check"], lengths: Sequence[int], kinds: Sequence[_Kind]
) -> Subject:
    dim = draw.choice((128, 128, 64))
    n = draw.choice(lengths) - draw.choice((0, 0, 0, draw.randrange(1, min(900, min(lengths) - 100))))
    batch = draw.choice((1, 1, 2))
    window = int(2 ** draw.uniform(5, 12.5))
    base: dict[str, Any] = {"role": role, "n": n, "heads": 16, "dim": dim, "batch": batch}
    kind = draw.choice(kinds if dim == 128 else kinds[:NARROW])
    made = kind(number, window, draw, base)
    return replace(made, batch=1) if made.pattern == "prefix_lm" else made  # its input has a number for each


_Kind: TypeAlias = Callable[[str, int, random.Random, dict[str, Any]], Subject]

NARROW = 6
"""So many kinds, the first, are drawn at head dim 64 too."""

SEEN = 5
"""The fit sees so many kinds, the first."""


def _named(name: str, pattern: str, make: Callable[[int, random.Random], tuple[dict[str, Any], Inputs]]) -> _Kind:
    def build(number: str, window: int, draw: random.Random, base: dict[str, Any]) -> Subject:
        parameters, inputs = make(window, draw)
        return Subject(name=f"{number}_{name}", pattern=pattern, parameters=parameters, inputs=inputs, **base)

    return build


def _none(n: int) -> dict[str, Tensor]:
    return {}


_KINDS = (
    _named("swa", "sliding_window", lambda w, d: ({"window": w}, _none)),
    _named("streaming", "streaming", lambda w, d: ({"window": w, "sinks": d.choice((4, 64, 128))}, _none)),
    _named("documents", "documents", lambda w, d: ({}, _documents(max(100, w), d.randrange(1000)))),
    _named("table", BLOCK_TABLE, lambda w, d: ({}, _drawn(d.choice((0.01, 0.05, 0.1, 0.3)), d.randrange(1000)))),
    _named("causal", "causal", lambda w, d: ({}, _none)),
    _named("band", BAND, lambda w, d: ({"left": w, "right": d.choice((0, w // 2, w))}, _none)),
    _named("blocks", BLOCKS, lambda w, d: ({"past": d.choice((1, 2, 4, 8, 16))}, _none)),
    _named("prefix", "prefix_lm", lambda w, d: ({}, _prefix(w))),
    _named("segments", SEGMENTS, lambda w, d: ({"window": w}, _documents(3000, d.randrange(1000)))),
    _named("dilated", "dilated", lambda w, d: ({"span": w}, _none)),
)
