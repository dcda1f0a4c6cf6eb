"""The patterns that select by scores, written in numpy from the papers' definitions: loops, one sequence at a time.

Arrays are float64: q ``[heads, n, d]``, k and v ``[groups, n, d]``.  Each function gives the output ``[heads, n, d]``.
Nothing here knows the language or shares code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Array = np.ndarray
Given = dict[str, Any]


def softmax(x: Array) -> Array:
    if not len(x):
        return x
    e = np.exp(x - x.max())
    return e / e.sum()


def attended(
    q: Array, k: Array, v: Array, seen: Callable[[int, int], Iterable[int]], bias: Array | None = None
) -> Array:
    """Softmax attention where query ``t`` of head ``h`` sees the keys ``seen(h, t)``; no key gives zeros."""
    heads, n, d = q.shape
    ratio = heads // len(k)
    out = np.zeros((heads, n, v.shape[-1]))
    for h in range(heads):
        g = h // ratio
        for t in range(n):
            keys = sorted(set(seen(h, t)))
            logits = k[g, keys] @ q[h, t] / math.sqrt(d)
            if bias is not None:
                logits = logits + bias[g, keys]
            out[h, t] = softmax(logits) @ v[g, keys]
    return out


def best(values: dict[int, float], count: int, forced: Iterable[int] = ()) -> list[int]:
    """The keys of the largest values, forced ones first, ties to the smaller key."""
    first = set(forced)
    names = set(values) | first
    return sorted(names, key=lambda j: (j not in first, -values.get(j, 0.0), j))[:count]


def block(j: int, size: int, n: int) -> range:
    return range(j * size, min((j + 1) * size, n))


def past(t: int, blocks: Iterable[int], size: int) -> list[int]:
    return [s for j in blocks for s in range(j * size, (j + 1) * size) if s <= t]


def means(x: Array, size: int) -> Array:
    return np.stack([x[:, i : i + size].mean(1) for i in range(0, x.shape[1], size)], 1)


def moba(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, picks = given["block"], given["picks"]
    centre, ratio = means(k, size), len(q) // len(k)

    def seen(h: int, t: int) -> list[int]:
        own = t // size
        scores = {j: float(q[h, t] @ centre[h // ratio, j]) for j in range(own)}
        return past(t, [*best(scores, picks - 1), own], size)

    return attended(q, k, v, seen)


def _windows(n: int, size: int, step: int) -> list[range]:
    return [range(w, min(w + size, n)) for w in range(0, n, step)]


def _shares(q: Array, k: Array, size: int, step: int, h: int, t: int) -> dict[int, float]:
    """The softmax over finished windows of query ``t``."""
    d, ratio, n = q.shape[-1], len(q) // len(k), q.shape[1]
    done = [w for w, window in enumerate(_windows(n, size, step)) if window[0] + size - 1 <= t]
    windows = _windows(n, size, step)
    logits = np.array([q[h, t] @ k[h // ratio, windows[w]].mean(0) / math.sqrt(d) for w in done])
    return dict(zip(done, softmax(logits), strict=True))


def nsa(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, step, blk, picks = (given[name] for name in ("compress", "stride", "block", "picks"))
    heads, n, _ = q.shape
    ratio = heads // len(k)
    windows = _windows(n, size, step)
    coarse = np.zeros((heads, n, v.shape[-1]))
    chosen: dict[tuple[int, int], list[int]] = {}
    for t in range(n):
        for g in range(len(k)):
            mass: dict[int, float] = {}
            for h in range(g * ratio, (g + 1) * ratio):
                share = _shares(q, k, size, step, h, t)
                for w, p in share.items():
                    coarse[h, t] += p * v[g, windows[w]].mean(0)
                    j = windows[w][0] // blk
                    if windows[w][0] + size <= (j + 1) * blk:
                        mass[j] = mass.get(j, 0.0) + p
            # A block of which no window is finished can be chosen only because it is forced.
            chosen[g, t] = best(mass, picks, {0, t // blk, max(t // blk - 1, 0)})
    fine = attended(q, k, v, lambda h, t: past(t, chosen[h // ratio, t], blk))
    local = attended(q, k, v, lambda h, t: range(max(0, t - given["window"] + 1), t + 1))
    gate = given["gate"]
    return gate[0][..., None] * coarse + gate[1][..., None] * fine + gate[2][..., None] * local


def infllm_v2(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, step, blk, picks = (given[name] for name in ("compress", "stride", "block", "picks"))
    heads, n, _ = q.shape
    ratio, local = heads // len(k), given["window"] // blk

    def seen(h: int, t: int) -> list[int]:
        if n <= given["dense"]:
            return list(range(t + 1))
        g = h // ratio
        total: dict[int, float] = {}
        for head in range(g * ratio, (g + 1) * ratio):
            for w, p in _shares(q, k, size, step, head, t).items():
                total[w] = total.get(w, 0.0) + p
        mass: dict[int, float] = {}
        for w, p in total.items():
            for j in range(w * step // blk, (w * step + size - 1) // blk + 1):
                if j * blk < n:
                    mass[j] = max(mass.get(j, 0.0), p)
        forced = {0} | {j for j in range(t // blk + 1) if t // blk - j < local}
        return past(t, best(mass, picks, forced), blk)

    return attended(q, k, v, seen)


def seer_attention(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, gq, gk = given["block"], given["GQ"], given["GK"]
    blocks = gk.shape[1]

    def seen(h: int, t: int) -> list[int]:
        i = t // size
        gate = softmax(gk[h, : i + 1] @ gq[h, i] / math.sqrt(gq.shape[-1]))
        kept = range(i + 1) if i == blocks - 1 else [j for j in range(i + 1) if gate[j] > given["threshold"]]
        return past(t, kept, size)

    return attended(q, k, v, seen)


def seer_truth(q: Array, k: Array, given: Given) -> Array:
    """The export: the largest attention weight of each pair of blocks."""
    size, (heads, n, d) = given["block"], q.shape
    count = -(-n // size)
    found = np.zeros((heads, count, count))
    for h in range(heads):
        for t in range(n):
            weights = softmax(k[h // (heads // len(k)), : t + 1] @ q[h, t] / math.sqrt(d))
            for s, weight in enumerate(weights):
                found[h, t // size, s // size] = max(found[h, t // size, s // size], weight)
    return found


def vsa(q: Array, k: Array, v: Array, given: Given) -> Array:
    extents = (given["frames"], given["height"], given["width"])
    heads, n, d = q.shape
    ratio = heads // len(k)
    places = np.stack(np.unravel_index(np.arange(n), extents), 1) // np.array(given["cube"])
    counts = tuple(-(-extent // side) for extent, side in zip(extents, given["cube"], strict=True))
    cube = np.ravel_multi_index(tuple(places.T), counts)
    members = [np.flatnonzero(cube == c) for c in range(int(np.prod(counts)))]
    qc, kc, vc = (np.stack([x[:, m].mean(1) for m in members], 1) for x in (q, k, v))
    coarse = np.zeros((heads, len(members), v.shape[-1]))
    chosen = {}
    for h in range(heads):
        for c in range(len(members)):
            logits = kc[h // ratio] @ qc[h, c] / math.sqrt(d)
            coarse[h, c] = softmax(logits) @ vc[h // ratio]
            chosen[h, c] = best(dict(enumerate(logits)), given["picks"])
    fine = attended(q, k, v, lambda h, t: np.concatenate([members[c] for c in chosen[h, cube[t]]]).tolist())
    return fine + given["gate"] * coarse[:, cube]


def quest(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, ratio, n = given["page"], len(q) // len(k), q.shape[1]

    def seen(h: int, t: int) -> list[int]:
        g = h // ratio
        scores = {}
        for j in range(t // size + 1):
            page = k[g, block(j, size, n)]
            bounds = [
                np.maximum(q[i, t] * page.max(0), q[i, t] * page.min(0)).sum()
                for i in range(g * ratio, (g + 1) * ratio)
            ]
            scores[j] = float(max(bounds))
        return past(t, best(scores, given["budget"] // size, {t // size}), size)

    return attended(q, k, v, seen)


def dsa(q: Array, k: Array, v: Array, given: Given) -> Array:
    return attended(q, k, v, lambda _, t: best(dict(enumerate(_index(given, t))), given["picks"]))


def _index(given: Given, t: int) -> Array:
    products = np.maximum(given["QI"][:, t] @ given["KI"][: t + 1].T, 0)
    return given["wt"][:, t] @ products / math.sqrt(given["KI"].shape[-1])


def dsa_index(given: Given, n: int) -> Array:
    """The export: the softmax of the index over what is chosen."""
    found = np.zeros((n, n))
    for t in range(n):
        index = _index(given, t)
        keys = best(dict(enumerate(index)), given["picks"])
        found[t, keys] = softmax(index[keys])
    return found


def dma(q: Array, k: Array, v: Array, given: Given) -> Array:
    delta, ratio = given["delta"], len(q) // len(k)

    def seen(h: int, t: int) -> list[int]:
        return best(dict(enumerate(delta[h // ratio, : t + 1])), given["width"])

    return attended(q, k, v, seen, bias=delta)


def xattention(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, step, mass = given["block"], given["stride"], given["mass"]
    heads, n, d = q.shape
    cells, blocks = -(-n // step), -(-n // size)
    chosen: dict[tuple[int, int], list[int]] = {}
    for h in range(heads):
        keys = k[h // (heads // len(k))]
        sums = np.zeros((cells, cells))
        for t in range(n):
            for s in range(n):
                if (t + s) % step == step - 1:
                    sums[t // step, s // step] += q[h, t] @ keys[s] / step / math.sqrt(d)
        rows = np.zeros((blocks, blocks))
        for i in range(cells):
            # A cell that the end of the sequence cuts off counts by the tokens it has.
            there = len(block(i, step, n))
            seen = [
                j
                for j in range(i + 1)
                if any((t + s) % step == step - 1 for t in block(i, step, n) for s in block(j, step, n))
            ]
            for j, weight in zip(seen, softmax(sums[i, seen]), strict=True):
                rows[i * step // size, j * step // size] += weight * there * len(block(j, step, n))
        for i in range(blocks):
            forced = [0, i] if i else [0]
            total, taken = sum(rows[i]), sum(rows[i, forced])
            order = best({j: rows[i, j] for j in range(i + 1) if j not in forced}, blocks)
            kept = list(forced)
            for j in order:
                if taken >= mass * total:
                    break
                kept.append(j)
                taken += rows[i, j]
            chosen[h, i] = kept
    return attended(q, k, v, lambda h, t: past(t, chosen[h, t // size], size))


def vertical_slash(q: Array, k: Array, v: Array, given: Given) -> Array:
    heads, n, d = q.shape
    size, ratio = given["block"], heads // len(k)
    kept: dict[int, tuple[set[int], set[tuple[int, int]]]] = {}
    for h in range(heads):
        column, diagonal = np.zeros(n), dict.fromkeys(range(n), 0.0)
        seen: set[int] = set()
        for t in range(max(0, n - given["probe"]), n):
            for s, weight in enumerate(softmax(k[h // ratio, : t + 1] @ q[h, t] / math.sqrt(d))):
                column[s] += weight
                diagonal[t - s] += weight
                seen.add(t - s)
        columns = best(dict(enumerate(column)), given["columns"], range(min(30, n)))
        slashes = best({x: diagonal[x] for x in seen}, given["diagonals"], range(min(100, n)))
        tiles = {(t // size, (t - x) // size) for x in slashes for t in range(x, n)}
        kept[h] = set(columns), tiles

    def visible(h: int, t: int) -> list[int]:
        columns, tiles = kept[h]
        return [s for s in range(t + 1) if s in columns or (t // size, s // size) in tiles]

    return attended(q, k, v, visible)


DEFINITIONS: dict[str, Callable[[Array, Array, Array, Given], Array]] = {
    each.__name__: each
    for each in (moba, nsa, infllm_v2, seer_attention, vsa, quest, dsa, dma, xattention, vertical_slash)
}
"""The output of every pattern of the library that selects by scores."""
