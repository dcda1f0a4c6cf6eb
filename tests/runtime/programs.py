"""Random well-typed expressions, and their value at one point computed with Python numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping

from torch import Tensor

from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Load
from spdsl.semantics.ops import OPS
from tests.runtime.build import G, H, K, Q, load, op

TABLES = {"doc": "token", "flag": "token", "heads": "h", "pairs": "own"}


def condition(rng: random.Random, depth: int) -> Expr:
    """A random bool expression of q, k, h, g and the tables ``doc flag limit pairs``."""
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(
            (
                op("le", K, Q),
                op("lt", op("sub", Q, K), rng.randrange(1, 90)),
                load("flag", rng.choice((Q, K)), dtype="bool"),
                op("eq", load("doc", Q), load("doc", K)),
                load("pairs", op("floordiv", Q, 24), op("floordiv", K, 24), dtype="bool"),
            )
        )
    kind = rng.choice(("and", "or", "not", "compare", "compare", "pow2", "where"))
    if kind in ("and", "or"):
        return op(kind, condition(rng, depth - 1), condition(rng, depth - 1))
    if kind == "not":
        return op("not", condition(rng, depth - 1))
    if kind == "pow2":
        return op("is_pow2", integer(rng, depth - 1))
    if kind == "where":
        return op("where", *(condition(rng, depth - 1) for _ in range(3)))
    return op(rng.choice(("lt", "le", "gt", "ge", "eq", "ne")), number(rng, depth - 1), number(rng, depth - 1))


def number(rng: random.Random, depth: int) -> Expr:
    """A random int or float expression."""
    if rng.random() < 0.75:
        return integer(rng, depth)
    return op(rng.choice(("div", "mul")), integer(rng, depth), rng.choice((0.3, 2.5, -1.25)))


def integer(rng: random.Random, depth: int) -> Expr:
    """A random int expression whose values stay small."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(
            (
                Q,
                K,
                op("sub", Q, K),
                H,
                G,
                load("doc", rng.choice((Q, K))),
                load("limit", H),
                Const(value=rng.randrange(-9, 60)),
            )
        )
    kind = rng.choice(("add", "sub", "scale", "divide", "divide", "abs", "minmax", "bits", "where"))
    x = integer(rng, depth - 1)
    if kind in ("add", "sub"):
        return op(kind, x, integer(rng, depth - 1))
    if kind == "scale":
        return op("mul", x, rng.choice((-3, -1, 2, 5)))
    if kind == "divide":
        return op(rng.choice(("floordiv", "mod")), x, rng.choice((2, 3, 7, 16, 24, -5)))
    if kind == "abs":
        return op(rng.choice(("abs", "neg")), x)
    if kind == "minmax":
        return op(rng.choice(("min", "max")), x, integer(rng, depth - 1))
    if kind == "bits":
        return op(rng.choice(("bitlen", "isqrt")), x)
    return op("where", condition(rng, depth - 1), x, integer(rng, depth - 1))


def at(expr: Expr, env: Mapping[str, int], tables: Mapping[str, Tensor]) -> bool | int | float:
    """The value at one point, by the definition of the operations."""
    match expr:
        case Const(value=value):
            return value
        case Index(name=name) | Extent(name=name):
            return env[name]
        case Load(table=name, indices=indices):
            table = tables[name][0]
            places = (
                min(max(int(at(index, env, tables)), 0), size - 1)
                for index, size in zip(indices, table.shape, strict=True)
            )
            value: bool | int | float = table[tuple(places)].item()
            return value
        case Apply(op=name, args=args, dtype=dtype):
            value = OPS[name].fold(*(at(arg, env, tables) for arg in args))
            return float(value) if dtype == "float" else value
        case _:
            raise TypeError(expr)
