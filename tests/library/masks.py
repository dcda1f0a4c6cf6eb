"""The mask of every library pattern in plain numpy, written from the published definitions and not from the language.

Each function takes the number of keys ``n``, of heads and of key/value groups, then the parameters and inputs of the
pattern, and returns ``bool[heads, n, n]`` for queries and keys at positions 0 … n - 1.  Inputs have no batch axis here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


def _positions(n: int) -> tuple[Ints, Ints]:
    line = np.arange(n)
    return line[:, None], line[None, :]


def _every_head(mask: Mask, heads: int) -> Mask:
    return np.broadcast_to(mask, (heads, *mask.shape[-2:])).copy()


def _group(head: int, heads: int, groups: int) -> int:
    return head // (heads // groups)


# ---------------------------------------------------------------- windows, strides, ids


def full(n: int, heads: int, groups: int) -> Mask:
    return np.ones((heads, n, n), bool)


def causal(n: int, heads: int, groups: int) -> Mask:
    return _every_head(np.tril(np.ones((n, n), bool)), heads)


def sliding_window(n: int, heads: int, groups: int, window: int = 1024) -> Mask:
    ones = np.ones((n, n), bool)
    return _every_head(np.tril(ones) & np.triu(ones, 1 - window), heads)


def streaming(n: int, heads: int, groups: int, window: int = 1024, sinks: int = 4) -> Mask:
    mask = sliding_window(n, 1, 1, window)[0]
    mask[:, :sinks] = True
    return _every_head(np.tril(mask), heads)


def prefix_lm(n: int, heads: int, groups: int, prefix: int) -> Mask:
    mask = np.tril(np.ones((n, n), bool))
    mask[:, : max(prefix, 0)] = True
    return _every_head(mask, heads)


def documents(n: int, heads: int, groups: int, doc: Ints) -> Mask:
    mask = np.zeros((n, n), bool)
    for query in range(n):
        for key in range(query + 1):
            mask[query, key] = doc[query] == doc[key]
    return _every_head(mask, heads)


def block_local(n: int, heads: int, groups: int, block: int = 128) -> Mask:
    mask = np.zeros((n, n), bool)
    for start in range(0, n, block):
        mask[start : start + block, start : start + block] = True
    return _every_head(mask, heads)


def dilated(n: int, heads: int, groups: int, span: int = 4096, dilation: int = 4) -> Mask:
    mask = np.zeros((n, n), bool)
    for query in range(n):
        for distance in range(0, min(span, query + 1), dilation):
            mask[query, query - distance] = True
    return _every_head(mask, heads)


def strided(n: int, heads: int, groups: int, local: int = 128, stride: int = 128) -> Mask:
    mask = sliding_window(n, 1, 1, local)[0]
    for query in range(n):
        mask[query, query::-stride] = True
    return _every_head(mask, heads)


def longformer(n: int, heads: int, groups: int, is_global: Mask, window: int = 512) -> Mask:
    q, k = _positions(n)
    mask = np.abs(q - k) <= window // 2
    mask[is_global, :] = True
    mask[:, is_global] = True
    return _every_head(mask, heads)


def log_sparse(n: int, heads: int, groups: int) -> Mask:
    mask = np.eye(n, dtype=bool)
    distance = 1
    while distance < n:
        mask |= np.eye(n, k=-distance, dtype=bool)
        distance *= 2
    return _every_head(mask, heads)


def alibi(n: int, heads: int, groups: int) -> Mask:
    return causal(n, heads, groups)


def softcap(n: int, heads: int, groups: int, cap: float = 50.0) -> Mask:
    return causal(n, heads, groups)


def head_modes(n: int, heads: int, groups: int, full: Mask, sinks: int = 64, window: int = 256) -> Mask:
    per_mode = {True: causal(n, 1, 1)[0], False: streaming(n, 1, 1, window, sinks)[0]}
    return np.stack([per_mode[bool(full[_group(head, heads, groups)])] for head in range(heads)])


# ---------------------------------------------------------------- blocks


def _spread(blocks: Mask, block: int, n: int) -> Mask:
    """A mask of blocks as a mask of tokens."""
    return np.repeat(np.repeat(blocks, block, axis=-2), block, axis=-1)[..., :n, :n]


def power(n: int, heads: int, groups: int, block: int = 128, local_blocks: int = 8) -> Mask:
    count = math.ceil(n / block)
    powers = {1 << exponent for exponent in range(64)}
    blocks = np.array(
        [[i - j >= 0 and (i - j < local_blocks or i - j in powers) for j in range(count)] for i in range(count)]
    )
    return _every_head(np.tril(_spread(blocks, block, n)), heads)


def s2(n: int, heads: int, groups: int, block: int = 64, local_blocks: int = 8, stride: int = 16) -> Mask:
    count = math.ceil(n / block)
    masks = []
    for head in range(heads):
        shift = _group(head, heads, groups) * max(1, stride // groups)
        blocks = np.array(
            [[i - j < local_blocks or (j + shift) % stride == 0 for j in range(count)] for i in range(count)]
        )
        masks.append(np.tril(_spread(blocks, block, n)))
    return np.stack(masks)


def bigbird(
    n: int,
    heads: int,
    groups: int,
    block: int = 64,
    window_blocks: int = 3,
    global_blocks: int = 2,
    random_blocks: int = 3,
    seed: int = 0,
) -> Mask:
    count = math.ceil(n / block)
    masks = np.zeros((heads, count, count), bool)
    for head, i in itertools.product(range(heads), range(count)):
        for j in range(count):
            masks[head, i, j] = abs(i - j) <= window_blocks // 2 or i < global_blocks or j < global_blocks
        free = [j for j in range(count) if not masks[head, i, j]]
        free.sort(key=lambda j: (-philox_uniform(seed, (head, i, j)), j))
        masks[head, i, free[:random_blocks]] = True
    return _spread(masks, block, n)


def block_diffusion(n: int, heads: int, groups: int, half: int, block: int = 16) -> Mask:
    assert n == 2 * half
    mask = np.zeros((n, n), bool)
    for query, key in itertools.product(range(n), range(n)):
        noisy_q, noisy_k = query < half, key < half
        block_q, block_k = query % half // block, key % half // block
        diagonal = block_q == block_k and noisy_q == noisy_k
        offset = block_q > block_k and noisy_q and not noisy_k
        past = block_q >= block_k and not noisy_q and not noisy_k
        mask[query, key] = diagonal or offset or past
    return _every_head(mask, heads)


def blockrank(n: int, heads: int, groups: int, segment: Ints, last: int) -> Mask:
    mask = np.zeros((n, n), bool)
    for query in range(n):
        for key in range(query + 1):
            mask[query, key] = segment[key] in (segment[query], 0) or segment[query] == last
    return _every_head(mask, heads)


# ---------------------------------------------------------------- grids


def _neighbours(extent: int, window: int, stride: int, dilation: int, is_causal: bool) -> Mask:
    """``bool[extent, extent]``: what a query at each place of one axis sees, group by group as NATTEN defines it."""
    seen = np.zeros((extent, extent), bool)
    left, right = window // 2, window - 1 - window // 2
    for x in range(extent):
        group, place = x % dilation, x // dilation
        members = list(range(group, extent, dilation))
        length = len(members)
        if is_causal:
            leader = min(place // stride * stride + stride - 1, length - 1)
            places = range(max(leader - window + 1, 0), place + 1)
        else:
            leader = min(place // stride * stride + stride // 2, length - 1)
            middle = min(max(leader, left), length - 1 - right)
            places = range(max(middle - left, 0), middle + right + 1)
        for y in places:
            seen[x, members[y]] = True
    return seen


def neighborhood(
    extents: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    causal_axes: Sequence[bool] | None = None,
) -> Mask:
    """``bool[n, n]`` over the row-major places of a grid of any dimension: seen on every axis."""
    ones = (1,) * len(extents)
    settings = zip(
        extents, window, stride or ones, dilation or ones, causal_axes or (False,) * len(extents), strict=True
    )
    mask = np.ones((1, 1), bool)
    for axis in settings:
        mask = np.kron(mask, _neighbours(*axis))
    return mask


def _neighborhood(n: int, heads: int, groups: int, **parameters: Sequence[int]) -> Mask:
    assert n == math.prod(parameters["extents"])
    return _every_head(neighborhood(**parameters), heads)


def sliding_tile_3d(
    n: int, heads: int, groups: int, extents: Sequence[int], window: Ints, tile: Sequence[int] = (6, 8, 8)
) -> Mask:
    places = list(itertools.product(*(range(extent) for extent in extents)))
    counts = [math.ceil(extent / size) for extent, size in zip(extents, tile, strict=True)]
    mask = np.ones((heads, max(n, len(places)), max(n, len(places))), bool)
    for head in range(heads):
        axes = [_tile_window(counts[axis], int(window[head, axis])) for axis in range(3)]
        for (query, a), (key, b) in itertools.product(enumerate(places), enumerate(places)):
            mask[head, query, key] = all(axes[x][a[x] // tile[x], b[x] // tile[x]] for x in range(3))
    return mask[:, :n, :n]


def _tile_window(count: int, window: int) -> Mask:
    half = window // 2
    seen = np.zeros((count, count), bool)
    for i, j in itertools.product(range(count), range(count)):
        seen[i, j] = abs(min(max(i, half), count - 1 - half) - j) <= half
    return seen


# ---------------------------------------------------------------- Radial Attention


def radial_width(gap: int, frame_tokens: int, rho: float, block: int) -> tuple[float, int]:
    """Half width of the band between frames ``gap`` apart, and the spacing of the gaps that have one."""
    share = Fraction(2) ** (frame_tokens.bit_length() - gap.bit_length())
    width = float(frame_tokens) if gap <= 1 else max(rho * float(share), float(block))
    return width, 1 if share >= block else math.floor(block / share)


def _radial_rule(frames: int, frame_tokens: int, rho: float, block: int, sink: bool) -> Mask:
    inside = np.abs(np.subtract.outer(np.arange(frame_tokens), np.arange(frame_tokens)))
    rule = np.zeros((frames, frame_tokens, frames, frame_tokens), bool)
    for i, j in itertools.product(range(frames), range(frames)):
        width, spacing = radial_width(abs(i - j), frame_tokens, rho, block)
        if abs(i - j) % spacing == 0:
            rule[i, :, j, :] = inside <= width
        if sink and j == 0:
            rule[i, :, j, :] = True
    return rule.reshape(frames * frame_tokens, frames * frame_tokens)


def radial(
    n: int,
    heads: int,
    groups: int,
    frames: int,
    frame_tokens: int,
    rho: float = 0.95,
    block: int = 128,
    sink: bool = False,
) -> Mask:
    video = min(n, frames * frame_tokens)
    rule = _radial_rule(frames, frame_tokens, rho, block, sink)[:video, :video]
    mask = np.ones((n, n), bool)
    for top, left in itertools.product(range(0, video, block), range(0, video, block)):
        part = rule[top : min(top + block, video), left : min(left + block, video)]
        mask[top : min(top + block, video), left : min(left + block, video)] = _filled(part.sum(axis=0), part.shape[0])
    return _every_head(mask, heads)


def _filled(hits: Ints, rows: int) -> bool:
    """Whether, of the non-empty columns of a block, over 60 % are over a third full."""
    touched = int((hits > 0).sum())
    dense = sum(Fraction(int(hit), rows) > Fraction(1, 3) for hit in hits)
    return touched > 0 and Fraction(dense, touched) > Fraction(3, 5)


def radial_share(frames: int, frame_tokens: int, rho: float, sink: bool, block: int = 128) -> float:
    """The share of kept blocks of a video without text whose frames are whole blocks, at any length.

    A block then lies in one pair of frames, and what it keeps depends on the gap between them alone.
    """
    assert frame_tokens % block == 0
    inside = np.abs(np.subtract.outer(np.arange(frame_tokens), np.arange(frame_tokens)))
    per_frame = frame_tokens // block
    kept = 0
    for gap in range(frames):
        width, spacing = radial_width(gap, frame_tokens, rho, block)
        band = (inside <= width) & (gap % spacing == 0)
        hits = band.reshape(per_frame, block, per_frame, block).sum(axis=1)
        dense, touched = (3 * hits > block).sum(axis=2), (hits > 0).sum(axis=2)
        by_rule = int((5 * dense > 3 * touched).sum())
        pairs = frames if gap == 0 else 2 * (frames - gap)
        in_first_frame = 1 if sink else 0  # of these pairs, those whose keys are in frame 0: one for each gap
        kept += by_rule * (pairs - in_first_frame) + per_frame**2 * in_first_frame
    return kept / (frames * per_frame) ** 2


# ---------------------------------------------------------------- noise


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*, 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


def philox_uniform(seed: int, indices: Sequence[int]) -> float:
    """The language's noise: the seed is the key (low word, high word), the indices in order the counter."""
    counter = [*indices, 0, 0, 0, 0][:4]
    return philox(counter, (seed % (1 << 32), seed >> 32))[0] / 2**32


MASKS: dict[str, Callable[..., Mask]] = {
    "full": full,
    "causal": causal,
    "sliding_window": sliding_window,
    "streaming": streaming,
    "prefix_lm": prefix_lm,
    "documents": documents,
    "block_local": block_local,
    "dilated": dilated,
    "strided": strided,
    "longformer": longformer,
    "bigbird": bigbird,
    "power": power,
    "log_sparse": log_sparse,
    "s2": s2,
    "block_diffusion": block_diffusion,
    "blockrank": blockrank,
    "neighborhood_1d": _neighborhood,
    "neighborhood_2d": _neighborhood,
    "neighborhood_3d": _neighborhood,
    "sliding_tile_3d": sliding_tile_3d,
    "radial": radial,
    "alibi": alibi,
    "softcap": softcap,
    "head_modes": head_modes,
}
"""All library patterns by name."""
