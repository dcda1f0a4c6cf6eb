"""Warnings about patterns that are right and may not be meant."""

from __future__ import annotations

import pytest

from spdsl.analysis.doubts import doubts
from spdsl.library import names, text_of
from spdsl.pipeline import read
from spdsl.semantics.bind import bind


def warned(text: str) -> list[str]:
    return [each.message for each in doubts(bind(read(text), {}, heads=1, groups=1, head_dim=64))]


def test_a_query_that_keeps_nothing() -> None:
    assert warned("pattern p() { keep k < q }") == ["a query keeps nothing where q = 0, n = 1"]


def test_inputs_may_fill_rows() -> None:
    assert warned("pattern p() { input flag: bool[token]  keep flag[k] }") == []


@pytest.mark.parametrize("name", names())
def test_the_library_keeps_something_for_every_query(name: str) -> None:
    checked = read(text_of(name), name=name, resolve=lambda path: text_of(path.removesuffix(".spat")))
    values = {
        each.name: 4 if each.length is None else (4,) * each.length
        for each in checked.parameters
        if each.default is None
    }
    assert doubts(bind(checked, values, layer=3, heads=2, groups=1, head_dim=64)) == ()
