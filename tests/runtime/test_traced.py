"""Open numbers: what is computed from them for other values, and when it does not hold for these."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spdsl.runtime.traced import Trace, Traced, concrete

NUMBERS = st.integers(-1000, 5000)


def launch(n: int, start: int) -> tuple[int, int, int]:
    """Some numbers of a launch, as the run time makes them."""
    turns = -(-n // 64)
    parts = max(1, min(8, turns // 4))
    if parts == 1 and start % 16 == 0:
        return 0, parts, 1
    return 3 * parts + 2, n - start, (start + 7) % 5


@given(n=NUMBERS, start=NUMBERS, others=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=10, max_size=10))
def test_the_same_numbers_or_none(n: int, start: int, others: list[tuple[int, int]]) -> None:
    trace = Trace()
    found = launch(trace.number("n", n), trace.number("start", start))
    assert tuple(concrete(each) for each in found) == launch(n, start)
    function = trace.function([each for each in found if isinstance(each, Traced)])
    open = [isinstance(each, Traced) for each in found]
    for values in [(n, start), *others]:
        expected, numbers = launch(*values), function(*values)
        assert numbers is not None or values != (n, start)
        if numbers is not None:
            assert numbers == tuple(each for each, is_open in zip(expected, open, strict=True) if is_open)
            # What is not open is constant as long as the conditions hold.
            assert all(
                is_open or one == concrete(other) for one, other, is_open in zip(expected, found, open, strict=True)
            )


def test_it_holds_for_other_lengths() -> None:
    trace = Trace()
    found = launch(trace.number("n", 3000), trace.number("start", 2999))
    function = trace.function([each for each in found if isinstance(each, Traced)])
    assert function(4000, 3999) == (1, 1)
    assert function(400, 399) is None


@pytest.mark.parametrize(
    "ask", [int, hash, bool, lambda n: n == 70, lambda n: [0] * 100 and list(range(100))[n], lambda n: {70: 1}.get(n)]
)
def test_whoever_asks_is_told_once(ask: Callable[[int], object]) -> None:
    trace = Trace()
    n = trace.number("n", 70)
    assert ask(n) == ask(70)
    function = trace.function([n])  # type: ignore[list-item]
    assert function(70) == (70,)
    assert function(0) is None
    assert trace.conditions


def test_other_things_are_not_numbers() -> None:
    n = Trace().number("n", 70)
    with pytest.raises(TypeError):
        n + "1"  # type: ignore[operator]
    with pytest.raises(TypeError):
        n / 2
    assert n != "70"
