"""Expressions as Triton text."""

from __future__ import annotations

import pytest

from spdsl.codegen.expressions import FORMS, TRUNCATING, helpers_of, text_of, truncated
from spdsl.semantics.nodes import Const, Expr, Extent, Index
from spdsl.semantics.ops import OPS
from tests.runtime.build import K, Q, op

START = Extent(name="q_start")


def test_every_operation_has_a_text() -> None:
    assert FORMS.keys() == OPS.keys()
    assert not TRUNCATING.keys() & OPS.keys()


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (op("mul", op("add", Q, 1), K), "(q + 1) * k"),
        (op("sub", Q, op("sub", K, 1)), "q - (k - 1)"),
        (op("sub", op("sub", Q, K), 1), "q - k - 1"),
        (op("and", op("le", K, Q), op("or", op("lt", Q, 3), op("eq", K, 0))), "(k <= q) & ((q < 3) | (k == 0))"),
        (op("not", op("le", K, Q)), "~(k <= q)"),
        (op("neg", op("neg", Q)), "-(-q)"),
        (op("mul", Q, Const(value=-2)), "q * -2"),
        (op("floordiv", Q, 6), "q // 6"),
        (op("mod", op("floordiv", Q, 6), 3), "q // 6 % 3"),
        (op("floordiv", op("sub", Q, K), 6), "floor_div(q - k, 6)"),
        (op("floordiv", op("max", op("sub", Q, K), 0), 6), "tl.maximum(q - k, 0) // 6"),
        (op("floordiv", START, 6), "floor_div(q_start, 6)"),
        (op("floordiv", op("sub", Q, K), 4), "(q - k) >> 2"),
        (op("mod", op("sub", Q, K), 4), "(q - k) & 3"),
        (op("eq", op("mod", op("floordiv", Q, 8), 4), 0), "((q >> 3) & 3) == 0"),
        (op("mod", Q, -4), "floor_mod(q, -4)"),
        (op("pow", 2, K), "1 << k"),
        (op("mul", op("float", Q), Const(value=2)), "tl.cast(q, tl.float32) * 2.0"),
        (op("where", op("is_pow2", Q), Q, K), "tl.where(is_pow2(q), q, k)"),
        (Const(value=float("-inf")), 'float("-inf")'),
    ],
)  # fmt: skip
def test_text(expr: Expr, text: str) -> None:
    assert text_of(truncated(expr)) == text


def test_text_means_the_same_in_python() -> None:
    """The brackets are right: Python reads the text as the tree that was printed."""
    names = {"q": 11, "k": 4}
    values: list[Expr] = [Q, K, Const(value=3)]
    symbols = ("add", "sub", "mul", "floordiv", "mod")
    for outer in symbols:
        for inner in symbols:
            for a in values:
                for left in (True, False):
                    part = op(inner, Q, K)
                    expr = op(outer, part, a) if left else op(outer, a, op("add", part, 9))
                    text = text_of(truncated(expr))
                    if not helpers_of(truncated(expr)):
                        assert eval(text, {}, names) == _value(expr, names), text  # noqa: S307  # our own text


def _value(expr: Expr, names: dict[str, int]) -> int:
    match expr:
        case Const(value=value):
            return int(value)
        case Index(name=name):
            return names[name]
        case _:
            return int(OPS[expr.op].fold(*(_value(arg, names) for arg in expr.args)))  # type: ignore[union-attr]


def test_helpers_are_found() -> None:
    assert helpers_of(op("add", op("isqrt", Q), op("bitlen", K))) == {"isqrt", "bitlen"}
