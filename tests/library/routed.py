"""Hierarchies, routers and reuse, written in numpy from the papers' definitions: loops, one sequence at a time.

Arrays are float64 as in `definitions`, and nothing here knows the language or shares code with the package.  Each
function of `ROUTED` gives the output ``[heads, n, d]``, each of `EXPORTED` what the pattern exports.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tests.library.definitions import Array, Given, attended, best, block, means, past, softmax
from tests.library.reused import (
    ada_snapkv_chosen,
    delta,
    delta_chosen,
    hylra,
    snapkv_chosen,
    sparsed_build,
    sparsed_chosen,
    sparsed_reuse,
)


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


def kinetics(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, ratio = given["page"], len(q) // len(k)
    centre = means(k, size)

    def seen(h: int, t: int) -> list[int]:
        g = h // ratio
        mean = q[g * ratio : (g + 1) * ratio, t].mean(0)
        scores = {j: float(mean @ centre[g, j]) for j in range(t // size + 1)}
        return past(t, best(scores, given["picks"], {t // size}), size)

    return attended(q, k, v, seen)


def superlinear(q: Array, k: Array, v: Array, given: Given) -> Array:
    heads, n, d = q.shape
    ratio, local = heads // len(k), given["local"]
    out = np.zeros((heads, n, v.shape[-1]))

    def attention(h: int, t: int, keys: set[int]) -> Array:
        seen = sorted(keys)
        return softmax(k[h // ratio, seen] @ q[h, t] / math.sqrt(d)) @ v[h // ratio, seen]

    for h in range(heads):
        for t in range(n):
            window = set(range(max(0, t - local + 1), t + 1))
            stripes = [t - i * i + 1 for i in range(1, n) if 0 <= t - i * i + 1 <= t - local]
            scores = {s: float(k[h // ratio, s] @ given["Q1"][h, t]) for s in stripes}
            anchors = best(scores, given["picks"])
            if not anchors:
                out[h, t] = attention(h, t, window)
                continue
            reach = math.sqrt(t + 1)
            for anchor, worth in zip(anchors, softmax(np.array([scores[s] for s in anchors])), strict=True):
                first = anchor - math.ceil(given["back"] * reach)
                last = min(t, anchor + math.ceil(given["ahead"] * reach))
                out[h, t] += worth * attention(h, t, window | set(range(max(0, first), last + 1)))
    return out


def routing(q: Array, k: Array, v: Array, given: Given) -> Array:
    heads, n, d = q.shape
    ratio, mu = heads // len(k), given["mu"]
    out, times = np.zeros((heads, n, v.shape[-1])), np.zeros((heads, n, 1))
    for h in range(heads):
        g = h // ratio
        for centre in mu[h]:
            asks = best({t: q[h, t] @ centre / np.linalg.norm(q[h, t]) for t in range(n)}, given["width"])
            answers = best({s: k[g, s] @ centre / np.linalg.norm(k[g, s]) for s in range(n)}, given["width"])
            for t in asks:
                keys = sorted(s for s in answers if s <= t)
                if keys:
                    out[h, t] += softmax(k[g, keys] @ q[h, t] / math.sqrt(d)) @ v[g, keys]
                    times[h, t] += 1
    return out / np.maximum(times, 1)


def heaviest(values: dict[int, float], share: float, least: int = 0) -> list[int]:
    """The largest values until their sum reaches the share of all, at least so many."""
    order, taken, total = best(values, len(values)), 0.0, sum(values.values())
    kept: list[int] = []
    for j in order:
        if taken >= share * total and len(kept) >= least:
            break
        kept.append(j)
        taken += values[j]
    return kept


def sparge(q: Array, k: Array, v: Array, given: Given) -> Array:
    rows, columns, (heads, n, d) = given["rows"], given["columns"], q.shape
    ratio, (down, across) = heads // len(k), (-(-n // rows), -(-n // columns))

    def alike(x: Array) -> bool:
        directions = x / np.linalg.norm(x, axis=-1, keepdims=True)
        return bool((directions @ directions.T).mean() >= given["theta"])

    def seen(h: int, t: int) -> list[int]:
        block_q = q[h, [*block(t // rows, rows, n)]]
        judged = {}
        always = []
        for j in range(across):
            block_k = k[h // ratio, [*block(j, columns, n)]]
            if alike(block_q) and alike(block_k):
                judged[j] = float(block_q.mean(0) @ block_k.mean(0) / math.sqrt(d))
            else:
                always.append(j)
        shares = dict(zip(judged, softmax(np.array([*judged.values()])), strict=True))
        return [s for j in [*always, *heaviest(shares, given["mass"])] for s in block(j, columns, n)]

    assert down
    return attended(q, k, v, seen)


def dhsa(q: Array, k: Array, v: Array, given: Given) -> Array:
    cut, (heads, _, d) = given["cut"].reshape(-1).astype(int), q.shape
    ratio = heads // len(k)
    chunks = {c: np.flatnonzero(cut == c) for c in range(cut.max() + 1)}
    chosen: dict[int, list[int]] = {}
    for c, tokens in chunks.items():
        if not len(tokens):
            continue
        scores: dict[int, float] = {}
        for keys in chunks.values():
            if len(keys):
                weight = math.sqrt(len(tokens) * len(keys) * d)
                products = [q[h, tokens].sum(0) @ k[h // ratio, keys].sum(0) / weight for h in range(heads)]
                scores |= {int(s): float(np.mean(products)) for s in keys if s <= tokens[-1]}
        recent = [s for s in scores if tokens[0] - s < given["local"]]
        chosen[c] = best(scores, given["budget"], recent)
    return attended(q, k, v, lambda _, t: [s for s in chosen[cut[t]] if s <= t])


def causal(q: Array, k: Array, v: Array, given: Given) -> Array:
    return attended(q, k, v, lambda _, t: range(t + 1))


def rectified(q: Array, k: Array, v: Array, given: Given) -> Array:
    piece, (heads, n, d) = given["piece"].reshape(-1).astype(int), q.shape
    ratio, count = heads // len(k), piece.max() + 1
    tokens = [np.flatnonzero(piece == c) for c in range(count)]
    out = np.zeros((heads, n, v.shape[-1]))
    for h in range(heads):
        g = h // ratio
        for i in range(count):
            mean = q[h, tokens[i]].mean(0)
            logits = [k[g, j].mean(0) @ mean / math.sqrt(d) + math.log(len(j)) for j in tokens]
            share = dict(enumerate(softmax(np.array(logits))))
            core = {*heaviest(share, given["mass"]), *best(share, given["picks"])}
            core |= {j for j in range(count) if given["text"][tokens[j]].any()}
            gains = {j for j in range(count) if given["gains"][h, i, j]}
            held = sum(share[j] for j in range(count) if j in core or j not in gains)
            pooled = sum((share[j] * v[g, tokens[j]].mean(0) for j in gains - core), np.zeros(v.shape[-1]))
            keys = sorted(int(s) for j in core for s in tokens[j])
            for t in tokens[i]:
                out[h, t] = held * (softmax(k[g, keys] @ q[h, t] / math.sqrt(d)) @ v[g, keys]) + pooled
    return out


def sea(q: Array, k: Array, v: Array, given: Given) -> Array:
    heads, n, _ = q.shape
    bins, ratio = given["bins"], heads // len(k)
    of_bins = range(bins)
    tokens = [[s for s in range(n) if s * bins // n == j] for j in of_bins]
    chosen: dict[int, list[int]] = {}
    for t in range(n):
        # A bin begins at the first position that falls into it, whether or not a position does.
        seen = [j for j in of_bins if -(-j * n // bins) <= t]
        values = {h * bins + j: given["estimate"][h, t, j] for h in range(heads) for j in seen}
        chosen[t] = best(values, heads * given["picks"] * bins // n)

    def visible(h: int, t: int) -> list[int]:
        return [s for c in chosen[t] if c // bins == h for s in tokens[c % bins] if s <= t]

    gain = given["gain"][..., None]
    rest = np.stack([[v[h // ratio, : t + 1].mean(0) for t in range(n)] for h in range(heads)])
    return gain * attended(q, k, v, visible) + (1 - gain) * rest


def longnet(q: Array, k: Array, v: Array, given: Given) -> Array:
    heads, n, d = q.shape
    out = np.zeros((heads, n, v.shape[-1]))
    for h in range(heads):
        g = h // (heads // len(k))
        for t in range(n):
            keys: list[int] = []
            for size, rate in zip(given["segment"], given["rate"], strict=True):
                phase = h // -(-heads // rate)
                if t % size % rate == phase:
                    start = t // size * size
                    keys += [s for s in range(start, t + 1) if (s - start) % rate == phase]
            if keys:
                out[h, t] = softmax(k[g, keys] @ q[h, t] / math.sqrt(d)) @ v[g, keys]
    return out


def longformer_global(q: Array, k: Array, v: Array, given: Given) -> Array:
    special, step = given["special"], given["dilation"]
    reach, n = given["window"] // 2 * step, q.shape[1]

    def near(_: int, t: int) -> list[int]:
        return [s for s in range(n) if (abs(t - s) <= reach and (t - s) % step == 0) or special[s]]

    local = attended(q, k, v, near)
    everywhere = attended(given["QG"], given["KG"], given["VG"], lambda _, __: range(n))
    return np.where(special[None, :, None] > 0, everywhere, local)


def flexprefill(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, (heads, n, d) = given["block"], q.shape
    ratio, count, least = heads // len(k), -(-n // size), given["least"]
    first = max(0, n - size)
    rows, columns = means(q, size), means(k, size)
    kept: dict[int, tuple[set[int], set[tuple[int, int]]]] = {}
    for h in range(heads):
        g = h // ratio
        column, slash = np.zeros(n), dict.fromkeys(range(1 - n, n), 0.0)
        for t in range(first, n):
            for s, share in enumerate(softmax(k[g, : t + 1] @ q[h, t] / math.sqrt(d))):
                column[s] += share
                slash[t - s] += share
        shown = np.array([column[j * size : (j + 1) * size].sum() for j in range(count)]) / (n - first)
        guess = softmax(columns[g] @ q[h, first:].mean(0) / math.sqrt(d))
        middle = (shown + guess) / 2
        divergence = sum(float((p * np.log(p / middle)).sum()) for p in (shown, guess)) / 2
        trusted = divergence < given["tau"] ** 2
        tiles: set[tuple[int, int]] = set()
        if trusted:
            cells: dict[int, float] = {}
            for i in range(count):
                shares = softmax(columns[g, : i + 1] @ rows[h, i] / math.sqrt(d))
                cells |= {i * count + j: float(share) for j, share in enumerate(shares)}
            tiles |= {divmod(cell, count) for cell in heaviest(cells, given["mass"])}
        # Only distances that the probe has count.
        there = {x: y for x, y in slash.items() if any(0 <= t - x <= t for t in range(first, n))}
        if trusted:
            chosen, distances = best(dict(enumerate(column)), least), best(there, least)
        else:
            chosen, distances = (
                heaviest(dict(enumerate(column)), given["mass"], least),
                heaviest(there, given["mass"], least),
            )
        tiles |= {(t // size, (t - x) // size) for x in distances for t in range(max(x, 0), min(n, n + x))}
        kept[h] = set(chosen), tiles

    def visible(h: int, t: int) -> list[int]:
        columns, tiles = kept[h]
        return [s for s in range(t + 1) if s in columns or (t // size, s // size) in tiles]

    return attended(q, k, v, visible)


def hip(q: Array, k: Array, v: Array, given: Given) -> Array:
    size, (heads, n, d) = given["rows"], q.shape
    ratio, sinks, window = heads // len(k), given["sinks"], given["window"]

    def searched(h: int, i: int, chunks: list[range]) -> dict[int, float]:
        """The best value that halving each chunk meets; chunks that meet none are left out."""
        rows = [t for t in block(i, size, n) if t % given["every"] == 0]

        def value(s: int) -> float:
            products = [k[h // ratio, s] @ q[h, t] / math.sqrt(d) for t in rows if sinks <= s <= t - window]
            return max(products, default=-math.inf)

        found = {}
        for number, chunk in enumerate(chunks):
            met = [value(chunk[0])] if len(chunk) == 1 else []
            while len(chunk) > 1:
                half = -(-len(chunk) // 2)
                halves = chunk[:half], chunk[half:]
                values = [value((part[0] + part[-1] + 1) // 2) for part in halves]
                met += values
                chunk = halves[1] if values[1] > values[0] else halves[0]
            if max(met, default=-math.inf) > -math.inf:
                found[number] = max(met)
        return found

    chosen = {}
    for h in range(heads):
        for i in range(-(-n // size)):
            # The chunks of a round are the parts of those that the round before has kept.
            kept = [range(n)]
            for length, budget in zip(given["chunk"], given["budget"], strict=True):
                parts = [block(j, length, n) for j in range(-(-n // length))]
                inside = [part for part in parts if any(part[0] in outer for outer in kept)]
                scores = searched(h, i, inside)
                kept = [inside[j] for j in best(scores, budget // length)]
            chosen[h, i] = {s for part in kept for s in part}

    def seen(h: int, t: int) -> list[int]:
        return [s for s in range(t + 1) if s in chosen[h, t // size] or s < sinks or t - s < window]

    return attended(q, k, v, seen)


ROUTED: dict[str, Callable[[Array, Array, Array, Given], Array]] = {
    each.__name__: each
    for each in (
        llsa, flux, minference_blocks, flashprefill, sparsed_build, sparsed_reuse, delta, hylra, kinetics, superlinear,
        routing, sparge, dhsa, rectified, sea, longnet, longformer_global, flexprefill, hip,
    )
} | {"snapkv": causal, "ada_snapkv": causal}  # fmt: skip
"""The output of every pattern of the library that has levels, routes or reuses."""

EXPORTED: dict[str, Callable[[Array, Array, Given], Array]] = {
    "sparsed_build": sparsed_chosen,
    "delta": delta_chosen,
    "snapkv": snapkv_chosen,
    "ada_snapkv": ada_snapkv_chosen,
}
"""What they export."""
