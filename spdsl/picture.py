"""Pictures of masks: every pair, and the tiles that a kernel touches (matplotlib, in the extra `demo`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spdsl.diagnostics import error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bools = npt.NDArray[np.bool_]

INK = "#1f2933"
EMPTY, PARTIAL, FULL = "#f4f5f7", "#f2b263", "#2f6fb0"
IN_PART, WHOLE, KEPT_IN_PART = "#fbe3c0", "#a9cdee", "#e0902f"  # tiles under the pairs of a mask, and pairs in them
MOST = 768
"""Rows and columns that a picture of pairs shows; a longer mask is shown by squares of pairs, as shades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Which tiles of a mask are touched and which are full, and the shares of pairs and of tiles.

    ``state`` is int8 ``[rows, columns]``: 0 empty, 1 partial, 2 full.
    """

    block_q: int
    block_k: int
    state: npt.NDArray[np.int8]
    kept_pairs: float
    kept_tiles: float
    full_tiles: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """The tiles that a kernel visits: ``state`` int8 ``[query tiles, key tiles]`` as in `Tiles`, and the rows that they
    hold, ``[tiles, rows of a tile]``, -1 for rows that do not exist."""

    title: str
    state: npt.NDArray[np.int8]
    query_rows: npt.NDArray[np.int64]
    key_rows: npt.NDArray[np.int64]

    @property
    def touched(self) -> int:
        """Tiles that are visited."""
        return int((self.state > 0).sum())

    @property
    def full(self) -> int:
        """Tiles that need no mask."""
        return int((self.state == 2).sum())

    def mask(self, mask: Bools) -> Bools:
        """A mask ``[nq, nk]`` with its rows and columns in the order of the tiles."""
        q, k = self.query_rows.ravel(), self.key_rows.ravel()
        return np.asarray(mask[np.ix_(q, k)] & (q >= 0)[:, None] & (k >= 0), dtype=np.bool_)


def count_tiles(mask: Bools, block_q: int, block_k: int) -> Tiles:
    """Tiles of a bool mask ``[nq, nk]``; a tile over the edge counts its existing pairs alone."""
    nq, nk = mask.shape
    kept = _sum_tiles(mask, block_q, block_k)
    rows = np.minimum(block_q, nq - np.arange(kept.shape[0]) * block_q)
    columns = np.minimum(block_k, nk - np.arange(kept.shape[1]) * block_k)
    state = ((kept > 0).astype(np.int8) + (kept == rows[:, None] * columns[None, :])).astype(np.int8)
    return Tiles(
        block_q=block_q,
        block_k=block_k,
        state=state,
        kept_pairs=float(mask.mean()) if mask.size else 0.0,
        kept_tiles=float((state > 0).mean()) if state.size else 0.0,
        full_tiles=float((state == 2).mean()) if state.size else 0.0,
    )


def _sum_tiles(mask: Bools, block_q: int, block_k: int) -> npt.NDArray[np.int64]:
    by_row = np.add.reduceat(mask.astype(np.int64), np.arange(0, mask.shape[0], block_q), axis=0)
    return np.asarray(np.add.reduceat(by_row, np.arange(0, mask.shape[1], block_k), axis=1), dtype=np.int64)


def draw(
    mask: Bools,
    path: Path,
    *,
    title: str,
    subtitle: str = "",
    block_q: int = 64,
    block_k: int = 64,
    q_start: int = 0,
    walked: Walked | None = None,
) -> Tiles:
    """Write a PNG or SVG, by the ending of ``path``.  Two panels: the pairs of ``mask`` (bool ``[nq, nk]``), and its
    tiles, or over the pairs those that a kernel has ``walked``.  The first row is the query at position ``q_start``.

    Raises:
        SpatError: matplotlib is not installed (SP608), the mask has no pairs (SP609), or the file cannot be written
            (SP605).
    """
    if not mask.size:
        raise error("SP609", f"a mask of {mask.shape[0]} queries and {mask.shape[1]} keys has no picture")
    try:
        import matplotlib as mpl
    except ImportError:
        raise error("SP608", "pictures need matplotlib", help="Install it: `pip install matplotlib`.") from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tiles = count_tiles(mask, block_q, block_k)
    with plt.rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.7), dpi=160)
        _draw_pairs(left, mask, q_start)
        if walked is None:
            handles = _draw_tiles(right, tiles, mask.shape, q_start)
        else:
            handles = _draw_walked(right, walked, mask)
        figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 0.005))
        figure.suptitle(title, fontsize=15, fontweight="bold", y=0.985)
        if subtitle:
            figure.text(0.5, 0.925, subtitle, ha="center", fontsize=10)
        figure.subplots_adjust(left=0.06, right=0.985, bottom=0.12, top=0.86, wspace=0.16)
        try:
            figure.savefig(path, format=path.suffix[1:].lower() or "png", facecolor="white")
        except OSError as refused:
            raise error(
                "SP605",
                f"`{path}` cannot be written: {refused.strerror}",
                help="Check that the folder exists, and its permissions.",
            ) from None
        finally:
            plt.close(figure)
    return tiles


def _draw_pairs(axes: Axes, mask: Bools, q_start: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    nq, nk = mask.shape
    step = -(-max(nq, nk) // MOST)
    shares: npt.NDArray[np.float64] = mask.astype(np.float64)
    if step > 1:
        # The square root keeps thin diagonals visible among shades.
        shares = np.sqrt(_sum_tiles(mask, step, step) / (step * step))
    axes.imshow(
        shares,
        cmap=LinearSegmentedColormap.from_list("pairs", [EMPTY, FULL]),
        vmin=0,
        vmax=1,
        extent=(0, shares.shape[1] * step, q_start + shares.shape[0] * step, q_start),
        interpolation="nearest",
    )
    by = "pair" if step == 1 else f"square of {step} × {step} pairs"
    axes.set_title(f"one point for each {by}; {mask.mean():.1%} of the pairs kept", fontsize=10.5, pad=9)
    _label(axes, nq, nk, q_start)


def _draw_tiles(axes: Axes, tiles: Tiles, shape: tuple[int, ...], q_start: int) -> list[Any]:
    """Draw the panel and return what its colours mean, for the legend."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    nq, nk = shape
    rows, columns = tiles.state.shape
    axes.imshow(
        tiles.state,
        cmap=ListedColormap([EMPTY, PARTIAL, FULL]),
        vmin=0,
        vmax=2,
        extent=(0, columns * tiles.block_k, q_start + rows * tiles.block_q, q_start),
        interpolation="nearest",
    )
    if max(rows, columns) <= 48:
        for row in range(1, rows):
            axes.axhline(q_start + row * tiles.block_q, color="white", linewidth=0.8)
        for column in range(1, columns):
            axes.axvline(column * tiles.block_k, color="white", linewidth=0.8)
    size = f"{tiles.block_q} queries × {tiles.block_k} keys"
    axes.set_title(f"tiles of {size}; {tiles.kept_tiles:.1%} touched", fontsize=10.5, pad=9)
    _label(axes, nq, nk, q_start)
    partial = tiles.kept_tiles - tiles.full_tiles
    handles: list[Any] = [
        Patch(facecolor=FULL, label=f"full, no mask needed ({tiles.full_tiles:.1%})"),
        Patch(facecolor=PARTIAL, label=f"partial ({partial:.1%})"),
        Patch(facecolor=EMPTY, edgecolor="#c5cbd3", label=f"never read ({1 - tiles.kept_tiles:.1%})"),
    ]
    return handles


def _draw_walked(axes: Axes, walked: Walked, mask: Bools) -> list[Any]:
    """Draw the tiles of a kernel with the kept pairs over them, and return what the colours mean."""
    from matplotlib.colors import ListedColormap, to_rgba_array
    from matplotlib.patches import Patch

    rows, columns = walked.state.shape
    block_q, block_k = walked.query_rows.shape[1], walked.key_rows.shape[1]
    under = ListedColormap([EMPTY, IN_PART, WHOLE])
    axes.imshow(walked.state, cmap=under, vmin=0, vmax=2, extent=(0, columns, rows, 0), interpolation="nearest")
    pairs = walked.mask(mask)
    step = -(-max(pairs.shape) // MOST)
    shares = np.sqrt(_sum_tiles(pairs, step, step) / (step * step))
    at = [np.minimum((np.arange(n) + 0.5) * step // block, most - 1).astype(int)
          for n, block, most in zip(shares.shape, (block_q, block_k), (rows, columns), strict=True)]  # fmt: skip
    # The state of the tile below a point chooses its colour; a pair in a tile that is never read would be seen.
    shade = to_rgba_array([INK, KEPT_IN_PART, FULL])[walked.state[np.ix_(*at)]]
    shade[..., 3] = np.minimum(shares, 1.0)
    axes.imshow(shade, extent=(0, shares.shape[1] * step / block_k, shares.shape[0] * step / block_q, 0))
    if max(rows, columns) <= 64:
        for row in range(rows + 1):
            axes.axhline(row, color="white", linewidth=0.6)
        for column in range(columns + 1):
            axes.axvline(column, color="white", linewidth=0.6)
    computed = walked.touched * block_q * block_k
    useful = f"; {pairs.sum() / computed:.1%} of the computed pairs kept" if computed else ""
    axes.set_title(f"{walked.title}: tiles of {block_q} × {block_k}{useful}", fontsize=10.5, pad=9)
    _label(axes, rows, columns, 0)
    axes.set_xlabel("key tile", labelpad=2)
    axes.set_ylabel("query tile", labelpad=2)
    partial = walked.touched - walked.full
    return [
        Patch(facecolor=FULL, label=f"full, no mask needed ({walked.full:,})"),
        Patch(facecolor=KEPT_IN_PART, label=f"partial ({partial:,}), kept"),
        Patch(facecolor=IN_PART, label="partial, computed in vain"),
        Patch(facecolor=EMPTY, edgecolor="#c5cbd3", label=f"never read ({walked.state.size - walked.touched:,})"),
    ]


def _label(axes: Axes, nq: int, nk: int, q_start: int) -> None:
    from matplotlib.ticker import MultipleLocator

    axes.set_xlim(0, nk)
    axes.set_ylim(q_start + nq, q_start)
    for axis, extent in ((axes.xaxis, nk), (axes.yaxis, nq)):
        # Powers of two, as the edges of tiles are; at most nine of them.
        axis.set_major_locator(MultipleLocator(1 << max(0, (extent - 1).bit_length() - 3)))
    axes.set_xlabel("key", labelpad=2)
    axes.set_ylabel("query", labelpad=2)
    axes.tick_params(length=3, labelsize=9)
    axes.set_aspect("equal" if max(nq, nk) <= 2 * min(nq, nk) else "auto")
    for spine in axes.spines.values():
        spine.set_position(("outward", 2.5))  # or the frame would hide the first keys
