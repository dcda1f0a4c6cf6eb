"""Searches inside of nested blocks by sweeps: the first rows of a call, whose keys are few enough to score all.

From: the last of selections by searches, and the arrays of a call.  To: its lists.  Time of a sweep grows with the
number of keys of a row, that of a search with its logarithm, so that rows of long sequences are swept up to where both
take the same, and searched from there on.  What is held besides lists is what searches meet in all blocks of as many
rows as fit into a constant amount of memory.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spdsl.codegen.binaries import options_of
from spdsl.runtime.choosing import Keys, Members, Room, choose
from spdsl.runtime.notes import Grid
from spdsl.runtime.plain import Launch, start
from spdsl.runtime.split import multiprocessors
from spdsl.runtime.sweep_kernels import raise_blocks
from spdsl.runtime.tilings import SWEPT, Tiling
from spdsl.runtime.vendor import is_amd
from spdsl.semantics.graph import Select
from spdsl.semantics.nodes import Const

if TYPE_CHECKING:
    from spdsl.codegen.chains.sweeps import Sweep
    from spdsl.runtime.chain_runs import Run

BALANCE = 104
"""Operations of the matrix unit in the time in which a byte of a key comes from the second-level cache: 611·10¹² and
5.9·10¹² a second on an H200."""

HOPPER = 9
"""The major number of GPUs for which tiles of sweeps are made."""

WIDEST = 256
"""The most features of vectors, with which a tile fits into the memory of a multiprocessor."""

BLOCKS = 1 << 27
"""Numbers of four bytes that are held at once: three for each block of each size."""

TURNS = 24
"""Programs for each multiprocessor, of which two run at one time, so that the last ones do not run alone."""

SPANS = 16
"""The most spans of keys of a program, for which it reads its queries once."""


ALL = 1 << 30
"""Rows that end alike: all, and as many in each call, so that choosing is compiled once."""

WRITTEN = ("swept_best", "raised_best", "raised_first", "raised_middle")
"""What a sweep writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """The blocks of one selection: keys of a block, how many blocks there are, how many are chosen of how many."""

    name: str
    size: int
    columns: int
    width: int
    total: int

    def up_to(self, keys: int) -> int:
        """How many blocks there are up to a key."""
        return max(1, min(self.columns, -(-keys // self.size)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swept:
    """What is best inside of all blocks of some rows, int32 ``[batch * heads, rows, pitch]``, of ``columns`` blocks."""

    best: Tensor
    columns: int

    @property
    def pitch(self) -> int:
        """Numbers from one row to the next."""
        return self.best.shape[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raised(_Swept):
    """The same with the first and middle keys of the blocks, of which larger ones are made."""

    first: Tensor
    middle: Tensor


@dataclass(slots=True, kw_only=True)
class _Memory:
    """Memory for what is known of some rows; there is as much as the rows need that need most."""

    numbers: Tensor
    taken: int = 0

    def take(self, *shape: int) -> Tensor:
        """A part that is not taken yet."""
        first, self.taken = self.taken, self.taken + math.prod(shape)
        return self.numbers[first : self.taken].view(shape)


def swept_lists(run: Run) -> dict[str, Tensor] | None:
    """The lists of the first rows of a selection and of those above it, int32 ``[batch, heads, rows, width]``, by name;
    None where no row is swept."""
    sweep = run.loaded.chain.sweep
    if sweep is None or not _has_tiles(run):
        return None
    levels = _levels(run, sweep)
    rows = 0 if levels is None else _rows(run, sweep, levels)
    if levels is None or not rows:
        return None
    device, every = run.arrays.lines.device, run.batch * run.heads
    chunks: list[range] = []
    while not chunks or chunks[-1].stop < rows:
        chunks.append(_some_rows(run, sweep, levels, chunks[-1].stop if chunks else 0, rows))
    most = max(len(some) * _numbers(levels, _keys(run, sweep, some[-1])) for some in chunks)

    def full(shape: tuple[int, ...], value: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int32, device=device)

    sweeping = _Sweeping(
        run=run,
        sweep=sweep,
        levels=levels,
        lists={each.name: torch.empty(every, rows, each.width, dtype=torch.int32, device=device) for each in levels},
        memory=_Memory(numbers=torch.empty(every * most, dtype=torch.int32, device=device)),
        amounts={each.name: full((1,), each.width) for each in levels},
        ends={each.name: full((every, 1), each.total) for each in levels[1:]},
    )
    for some in chunks:
        sweeping.some(some)
    return {name: each.view(run.batch, run.heads, rows, -1) for name, each in sweeping.lists.items()}


def _has_tiles(run: Run) -> bool:
    """Whether there is a tile for the device, the interpreter among them, and for vectors of this type and size."""
    device = run.arrays.lines.device
    hopper = device.type == "cpu" or (not is_amd() and torch.cuda.get_device_capability(device)[0] == HOPPER)
    kernel = run.loaded.chain.kernels[0]
    operands = [(run.operands[each.name], each.feature) for each in kernel.arguments.vectors]
    return hopper and all(each.is_short and each.size(feature) <= WIDEST for each, feature in operands)


def _levels(run: Run, sweep: Sweep) -> tuple[_Level, ...] | None:
    """The blocks of each selection, the largest first; None where it is not known beforehand how many are chosen."""
    found: list[_Level] = []
    for name, size in zip(sweep.stages, sweep.sizes, strict=True):
        stage = run.arrays.stages[name]
        if not isinstance(stage, Select) or not isinstance(stage.amount, Const):
            return None
        columns = run.arrays.lines.size(stage.over)
        width = max(0, min(int(stage.amount.value), columns))
        if width == 0:
            return None
        total = found[-1].width * (found[-1].size // size) if found else columns
        found.append(_Level(name=name, size=size, columns=columns, width=width, total=total))
    return tuple(found)


def _rows(run: Run, sweep: Sweep, levels: tuple[_Level, ...]) -> int:
    """How many rows are swept: those that meet whole blocks alone, and take less time than searches."""
    lines = run.arrays.lines
    rows, whole = lines.size(run.loaded.chain.rows), lines.n // sweep.sizes[0] * sweep.sizes[0]

    def is_searched(row: int) -> bool:
        keys = _keys(run, sweep, row)
        vectors = sum(min(keys // level.size, level.total) * (2 * level.size.bit_length() - 3) for level in levels)
        return keys > whole or sweep.places * keys > BALANCE * vectors + sweep.places * sweep.sizes[0]

    return bisect_left(range(rows), True, key=is_searched)


def _keys(run: Run, sweep: Sweep, row: int) -> int:
    """Up to which key the queries of a row meet any."""
    n = run.arrays.lines.n
    return n if sweep.reach is None else max(0, min(n, (row + 1) * sweep.members - sweep.reach))


def _pitch(columns: int) -> int:
    """Numbers from one row to the next."""
    return -(-columns // 16) * 16


def _numbers(levels: tuple[_Level, ...], keys: int) -> int:
    """How many numbers are held for a row that meets keys up to one."""
    swept = [_pitch(each.up_to(keys)) for each in levels]
    return 3 * sum(swept[:-1]) + swept[-1]


def _some_rows(run: Run, sweep: Sweep, levels: tuple[_Level, ...], first: int, rows: int) -> range:
    """As many rows from the first one on as there is room for, at least one."""

    def is_beyond(count: int) -> bool:
        keys = _keys(run, sweep, first + count - 1)
        return count * run.batch * run.heads * _numbers(levels, keys) > BLOCKS

    return range(first, first + max(1, bisect_left(range(1, rows - first + 1), True, key=is_beyond)))


@dataclass(slots=True, kw_only=True)
class _Sweeping:
    """The sweeps of a call: lists of all levels, and what does not change from rows to rows."""

    run: Run
    sweep: Sweep
    levels: tuple[_Level, ...]
    lists: dict[str, Tensor]
    memory: _Memory
    amounts: dict[str, Tensor]
    ends: dict[str, Tensor]

    @property
    def every(self) -> int:
        """Heads of all sequences."""
        return self.run.batch * self.run.heads

    def some(self, rows: range) -> None:
        """Write the lists of some rows, of all levels."""
        self.memory.taken = 0
        keys = _keys(self.run, self.sweep, rows[-1])
        found: list[_Swept] = list(self._swept(rows, keys))
        for above, level in zip(self.levels[-3::-1], self.levels[-2:0:-1], strict=True):
            given = found[0]
            assert isinstance(given, _Raised)
            found.insert(0, self._raised(given, rows, keys, above, above.size // level.size))
        outer: _Level | None = None
        for level, each in zip(self.levels, found, strict=True):
            self._choose(level, each, rows, outer)
            outer = level

    def _room(self, level: _Level, rows: range, keys: int) -> _Raised:
        columns = level.up_to(keys)
        best, first, middle = (self.memory.take(self.every, len(rows), _pitch(columns)) for _ in range(3))
        return _Raised(best=best, first=first, middle=middle, columns=columns)

    def _swept(self, rows: range, keys: int) -> tuple[_Swept, ...]:
        """The smallest blocks, by products with all keys, and before them the next larger ones, if there are any."""
        run, share, level = self.run, self.sweep.share, self.levels[-1]
        columns = level.up_to(keys)
        into = _Swept(best=self.memory.take(self.every, len(rows), _pitch(columns)), columns=columns)
        above = self._room(self.levels[-2], rows, keys) if len(self.levels) > 1 else None
        tiles = -(-len(rows) * share // (SWEPT.rows // self.sweep.places)) * (self.every // share)
        spans = -(-columns // SWEPT.columns)
        wanted = -(-TURNS * multiprocessors(run.arrays.lines.device) // tiles)
        part_spans = max(1, min(SPANS, spans // wanted))
        parts = -(-spans // part_spans)
        given: dict[str, Any] = {"swept_best": into.best, "column_count": columns, "pitch": into.pitch}
        larger = into if above is None else above
        given |= {"raised_best": larger.best, "raised_count": larger.columns, "raised_pitch": larger.pitch}
        given["raised_first"] = into.best if above is None else above.first
        given["raised_middle"] = into.best if above is None else above.middle
        given |= {"first_row": rows[0], "chunk_rows": len(rows), "heads": run.heads}
        given |= {"parts": parts, "part_spans": part_spans}

        def grid(tiling: Tiling) -> Grid:
            del tiling
            return tiles, parts, 1

        run.launch(run.loaded.chain.kernels[0], given, grid, len(rows), WRITTEN, SWEPT)
        return (into,) if above is None else (above, into)

    def _raised(self, given: _Raised, rows: range, keys: int, above: _Level, ratio: int) -> _Raised:
        """Larger blocks from smaller ones."""
        into, size = self._room(above, rows, keys), max(1, 512 // ratio)
        values: dict[str, Any] = {"best": given.best, "first": given.first, "middle": given.middle}
        values |= {"best_of": into.best, "first_of": into.first, "middle_of": into.middle}
        values |= {"count": given.columns, "columns": into.columns, "pitch": given.pitch, "pitch_of": into.pitch}
        values |= {"RATIO": ratio, "LEVELS": ratio.bit_length() - 1, "SIZE": size}
        programs = self.every * len(rows) * -(-into.columns // size)
        self._start(raise_blocks, programs, values, ("best_of", "first_of", "middle_of"))
        return into

    def _choose(self, level: _Level, found: _Swept, rows: range, outer: _Level | None) -> None:
        """Write the lists of one level: of all blocks, or of the members of those that were chosen before."""
        into = self.lists[level.name]
        if outer is None:
            ends = torch.full((self.every, 1), found.columns, dtype=torch.int32, device=into.device)
            self._write(level, found.best, ends, rows)
            return
        among = Members(blocks=self.lists[outer.name], each=outer.size // level.size, count=found.columns)
        self._write(level, found.best, self.ends[level.name], rows, among)

    def _write(self, level: _Level, keys: Tensor, ends: Tensor, rows: range, among: Members | None = None) -> None:
        """Choose among the keys of some rows."""
        held = Keys(
            keys=keys,
            chunks=self.every,
            rows=len(rows),
            pitch=keys.shape[2],
            columns=level.total,
            ends=ends,
            block=ALL,
            among=among,
        )
        choose(held, "count", self.amounts[level.name], Room(lists=self.lists[level.name], first=rows[0]))

    def _start(self, function: Any, programs: int, values: dict[str, Any], writes: tuple[str, ...]) -> None:
        device = self.run.arrays.lines.device
        start(
            Launch(
                function=function,
                grid=(programs, 1, 1),
                values=values,
                options=options_of(4),
                writes=writes,
                device=device,
            )
        )
