"""What outlives a call, written in numpy as `routed` is: choices for later steps and layers, and for caches."""

from __future__ import annotations

import math

import numpy as np

from tests.library.definitions import Array, Given, attended, best, softmax


def sparsed_build(q: Array, k: Array, v: Array, given: Given) -> Array:
    return attended(q, k, v, lambda _, __: range(k.shape[1]))


def sparsed_chosen(q: Array, k: Array, given: Given) -> Array:
    """The export: blocks of keys for each block of queries, the prompt's and the answer's apart."""
    rows, columns, (heads, n, d) = given["rows"], given["columns"], q.shape
    count, down = -(-n // columns), -(-n // rows)
    many = math.floor(given["ratio"] * count) + 1
    found = np.zeros((heads, down, count), bool)
    for h in range(heads):
        weights = np.stack([softmax(k[h // (heads // len(k))] @ q[h, t] / math.sqrt(d)) for t in range(n)])
        for i in range(down):
            pooled = [weights[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean() for j in range(count)]
            old = {j: pooled[j] for j in range(count) if (j + 1) * columns - 1 < given["prompt"][0]}
            new = {j: pooled[j] for j in range(count) if j not in old}
            found[h, i, [*best(old, many), *best(new, many)]] = True
    return found


def sparsed_reuse(q: Array, k: Array, v: Array, given: Given) -> Array:
    def seen(h: int, t: int) -> list[int]:
        row = given["chosen"][h, t // given["rows"]]
        return [s for s in range(k.shape[1]) if row[s // given["columns"]]]

    return attended(q, k, v, seen)


def delta(q: Array, k: Array, v: Array, given: Given) -> Array:
    full = given["layer"] in (0, 1, 2, 14, 22)

    def seen(_: int, t: int) -> list[int]:
        return [s for s in range(t + 1) if full or given["reused"][t, s // given["page"]]]

    return attended(q, k, v, seen)


def delta_chosen(q: Array, k: Array, given: Given) -> Array:
    """The export: the pages that a layer chooses for those after it."""
    size, (heads, n, d) = given["page"], q.shape
    found = np.zeros((n, -(-n // size)), bool)
    for t in range(n):
        shares = [softmax(k[h // (heads // len(k)), : t + 1] @ q[h, t] / math.sqrt(d)) for h in range(heads)]
        largest = np.max(shares, axis=0)
        scores = {j: float(largest[j * size : (j + 1) * size].sum()) for j in range(t // size + 1)}
        recent = [j for j in range(t // size + 1) if t // size - j < given["recent"]]
        found[t, best(scores, given["picks"], recent)] = True
    return found


def hylra(q: Array, k: Array, v: Array, given: Given) -> Array:
    ratio = len(q) // len(k)

    def seen(h: int, t: int) -> list[int]:
        full = given["full"][given["layer"]]
        return [s for s in range(t + 1) if full or given["reused"][h // ratio, t, s]]

    return attended(q, k, v, seen)


def _votes(q: Array, k: Array, given: Given) -> Array:
    """What the last queries give to each key before them, smoothed with zeros past the ends, for each group."""
    heads, n, d = q.shape
    ratio, first = heads // len(k), max(0, n - given["probe"])
    votes = np.zeros((len(k), n))
    for h in range(heads):
        for t in range(first, n):
            votes[h // ratio, : t + 1] += softmax(k[h // ratio, : t + 1] @ q[h, t] / math.sqrt(d))
    votes[:, first:] = 0.0
    width = given["width"]
    padded = np.pad(votes, ((0, 0), (width // 2, width // 2)))
    return np.stack([padded[:, s : s + width].mean(1) for s in range(first)], 1) if first else votes[:, :0]


def snapkv_chosen(q: Array, k: Array, given: Given) -> Array:
    """The export: the keys that each group keeps."""
    n = q.shape[1]
    votes, recent = _votes(q, k, given), range(max(0, n - given["probe"]), n)
    found = np.zeros((len(k), n), bool)
    for g in range(len(k)):
        found[g, best(dict(enumerate(votes[g])), given["cap"], recent)] = True
    return found


def ada_snapkv_chosen(q: Array, k: Array, given: Given) -> Array:
    """The export: the keys that each group keeps, of one budget."""
    n, groups = q.shape[1], len(k)
    votes, recent = _votes(q, k, given), range(max(0, n - given["probe"]), n)
    forced = {g * n + s for g in range(groups) for s in recent}
    for g in range(groups):
        own = best(dict(enumerate(votes[g])), math.floor(given["share"] * given["cap"]))
        forced |= {g * n + s for s in own}
    values = {g * n + s: votes[g, s] for g in range(groups) for s in range(votes.shape[1])}
    found = np.zeros(groups * n, bool)
    found[best(values, given["cap"] * groups, forced)] = True
    return found.reshape(groups, n)
