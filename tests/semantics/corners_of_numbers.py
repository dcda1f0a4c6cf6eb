"""Corners of reductions, noise and arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.semantics.corner import Corner, Point, bools

# ---------------------------------------------------------------- reductions and noise


def _rounding(p: Point, _: dict[str, Any]) -> bool:
    def rule(q: int, k: int) -> bool:
        return k <= q and (q - k) % 5 < 2

    def block(x: int) -> range:
        return range(x // 4 * 4, min(x // 4 * 4 + 4, p.n))

    hits = sum(rule(q, k) for q in block(p.q) for k in block(p.k))
    share = np.mean([rule(p.q, k) for k in range(p.n)])
    full = any(all(rule(q, k) for q in block(p.q)) for k in block(p.k))
    return bool(hits > 6 or full or (p.k == 0 and share > 0.3))


REDUCTIONS = Corner(
    name="reductions",
    text="""
        pattern reductions(size: int in 1.. = 4) {
          axis blk = token by size
          let rule = causal and (q - k) % 5 < 2
          let hits = sum(rule, per = (q.blk, k.blk))
          keep hits > 6
          keep any(all(rule, per = q.blk), per = k.blk)
          keep k == 0 and mean(rule, over = k) > 0.3
        }""",
    kept=_rounding,
    n=38,
)


def _extremes(p: Point, given: dict[str, Any]) -> bool:
    weight, marked = given["weight"], given["marked"]
    blocks = [list(range(start, min(start + 5, p.n))) for start in range(0, p.n, 5)]
    own = blocks[p.k // 5]
    best = max(weight[x] for x in own)
    return bool((any(marked[x] for x in own) and p.k <= p.q) or (weight[p.k] == best and weight[p.k] > min(weight)))


EXTREMES = Corner(
    name="extremes",
    text="""
        pattern extremes() {
          input weight: int[token]
          input marked: bool[token]
          axis blk = token by 5
          keep any(marked[k], per = k.blk) and causal
          keep weight[k] == max(weight[k], per = k.blk) and weight[k] > min(weight[k], over = k)
        }""",
    kept=_extremes,
    n=39,
    inputs={"weight": np.random.default_rng(5).integers(0, 9, 39).astype(np.int32), "marked": bools(6, (39,), 0.2)},
)


def philox(seed: int, *counter: int) -> float:
    """Philox4x32-10 (Salmon et al., 2011), first word / 2**32."""
    word = 0xFFFFFFFF
    c = [*counter, 0, 0, 0, 0][:4]
    low, high = seed & word, seed >> 32 & word
    for _ in range(10):
        one, two = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [two >> 32 ^ c[1] ^ low, two & word, one >> 32 ^ c[3] ^ high, one & word]
        low, high = (low + 0x9E3779B9) & word, (high + 0xBB67AE85) & word
    return c[0] / 2**32


def _drawn(p: Point, _: dict[str, Any]) -> bool:
    mine, count = p.q // 4, -(-p.n // 4)
    candidates = sorted((j for j in range(count) if j < mine - 1), key=lambda j: (-philox(7, p.h, mine, j), j))
    # Three keys that everybody sees, and for every block of keys one of queries.
    known = sorted(range(p.n), key=lambda k: (-philox(8, k), k))[:3]
    seers = sorted(range(count), key=lambda i: (-philox(9, i, p.k // 4), i))[:1]
    return p.k // 4 in candidates[:2] or p.k in known or mine in seers or p.q == p.k


DRAWS = Corner(
    name="draws",
    text="""
        pattern draws(seed: int in 0.. = 7, picks: int in 0.. = 2) {
          axis blk = token by 4
          let blocks = noise(seed, per = (h, q.blk, k.blk)) |> only(k.blk < q.blk - 1) |> top(picks)
          let tokens = noise(seed + 1, per = k) |> top(3)
          let seers = noise(seed + 2, per = (q.blk, k.blk)) |> top(1, over = q.blk)
          keep blocks or tokens or seers or q == k
        }""",
    kept=_drawn,
    n=30,
)


# ---------------------------------------------------------------- arithmetic


def _arithmetic(p: Point, _: dict[str, Any]) -> bool:
    away = p.q - p.k
    return (
        (-away) // 3 % 2 == 0
        and (away % -4) > -3
        and -(2**2) + 4 == 0
        and 2.0**-1 == 0.5
        and (away / 2) // 1 != 3
        and (1 <= abs(away) < 9 != p.k)
        and -(away**2) > -70
    )


ARITHMETIC = Corner(
    name="arithmetic",
    text="""
        pattern arithmetic() {
          let away = q - k
          keep (-away) // 3 % 2 == 0
            and away % -4 > -3
            and -2 ** 2 + 4 == 0
            and 2 ** -1 == 0.5
            and away / 2 // 1 != 3
            and 1 <= abs(away) < 9 != k
            and -away ** 2 > -70
        }""",
    kept=_arithmetic,
    n=34,
)


def _functions(p: Point, _: dict[str, Any]) -> bool:
    away = p.q - p.k
    power = away > 0 and (away).bit_count() == 1
    return (
        power
        or int(abs(away) ** 0.5 + 1e-9) == 4
        or abs(away).bit_length() == 2
        or np.exp(-abs(away) / 8.0) > 0.9
        or np.ceil(p.k / 4) == np.floor(p.q / 4) + 5
    )


FUNCTIONS = Corner(
    name="functions",
    text="""
        pattern functions(fade: float in 0.1.. = 8.0) {
          let away = q - k
          keep is_pow2(away)
          keep isqrt(abs(away)) == 4
          keep bitlen(away) == 2
          keep exp(-abs(away) / fade) > 0.9 or ceil(k / 4) == floor(q / 4) + 5
        }""",
    kept=_functions,
    n=44,
)
