"""Hierarchies, routers and reuse, written in numpy from the papers' definitions: loops, one sequence at a time.

Arrays are float64 as in `definitions`, and nothing here knows the language or shares code with the package.  Each
function of `ROUTED` gives the output ``[heads, n, d]``, each of `EXPORTED` what the pattern exports.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tests.library.definitions import Array, Given, attended, best, block, means, past, softmax


def llsa(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, (few, many) = given["block"], given["picks"]
    heads, n, d = q.shape
    ratio, wide = heads // len(k), size * size
    fine_q, fine_k, fine_v = (means(x, size) for x in (q, k, v))
    # Means of all tokens of a block of blocks, also where the last one is short.
    top_q, top_k, top_v = (means(x, wide) for x in (q, k, v))
    out = np.zeros((heads, n, v.shape[-1]))
    for h in range(heads):
        g = h // ratio
        for t in range(n):
            upper = best(dict(enumerate(top_k[g] @ top_q[h, t // wide])), many)
            children = [j for i in upper for j in range(i * size, min((i + 1) * size, fine_k.shape[1]))]
            scores = {j: float(fine_k[g, j] @ fine_q[h, t // size]) for j in children}
            keys, values, weights = [], [], []
            for j in best(scores, few):
                for s in block(j, size, n):
                    keys, values, weights = [*keys, k[g, s]], [*values, v[g, s]], [*weights, 1]
            for j in children:
                keys, values = [*keys, fine_k[g, j]], [*values, fine_v[g, j]]
                weights.append(len(block(j, size, n)))
            for i in range(top_k.shape[1]):
                keys, values = [*keys, top_k[g, i]], [*values, top_v[g, i]]
                weights.append(len(block(i, wide, n)))
            logits = np.stack(keys) @ q[h, t] / math.sqrt(d) + np.log(weights)
            out[h, t] = softmax(logits) @ np.stack(values)
    return out


def flux(q: Array, k: Array, v: Array, given: Given) -> Array:
    def seen(_: int, t: int) -> list[int]:
        return [s for s in range(t + 1) if given["full"][0] or t - s < given["window"] or s < given["sinks"]]

    return attended(q, k, v, seen)


def minference_blocks(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, picks = given["block"], given["picks"]
    rows, columns, ratio = means(q, size), means(k, size), len(q) // len(k)

    def seen(h: int, t: int) -> list[int]:
        i = t // size
        return past(t, best({j: float(rows[h, i] @ columns[h // ratio, j]) for j in range(i + 1)}, picks), size)

    return attended(q, k, v, seen)


def flashprefill(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, (heads, n, d) = given["block"], q.shape
    columns, ratio, blocks = means(k, size), heads // len(k), -(-n // size)
    mass = np.zeros((heads, blocks, blocks))
    for h in range(heads):
        for t in range(n):
            for j in range(blocks):
                if (j + 1) * size - 1 <= t:
                    mass[h, t // size, j] += math.exp(q[h, t] @ columns[h // ratio, j] / math.sqrt(d))

    def seen(h: int, t: int) -> list[int]:
        i = t // size
        least = given["alpha"] * mass[h, i].max()
        kept = [
            j
            for j in range(i + 1)
            if mass[h, i, j] >= least or j < given["sinks"] or i - j < given["window"] or i >= blocks - given["dense"]
        ]
        return past(t, kept, size)

    return attended(q, k, v, seen)


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


def kinetics(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, ratio = given["page"], len(q) // len(k)
    centre = means(k, size)

    def seen(h: int, t: int) -> list[int]:
        g = h // ratio
        mean = q[g * ratio : (g + 1) * ratio, t].mean(0)
        scores = {j: float(mean @ centre[g, j]) for j in range(t // size + 1)}
        return past(t, best(scores, given["picks"], {t // size}), size)

    return attended(q, k, v, seen)


ROUTED: dict[str, Callable[[Array, Array, Array, Given], Array]] = {
    each.__name__: each
    for each in (
        llsa, flux, minference_blocks, flashprefill, sparsed_build, sparsed_reuse, delta, hylra, kinetics,
    )
}  # fmt: skip
"""The output of every pattern of the library that has levels, routes or reuses."""

EXPORTED: dict[str, Callable[[Array, Array, Given], Array]] = {
    "sparsed_build": sparsed_chosen,
    "delta": delta_chosen,
}
"""What they export."""
