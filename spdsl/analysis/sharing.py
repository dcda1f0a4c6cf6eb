"""What the busiest multiprocessor does of a kernel's work.

Programs differ in how many tiles they walk, and the counts of a kernel tell two numbers of that: the mean and the
longest.  Between them, most are taken to be as long as the longest, and the others to lie evenly below: so it is with
causal rows, with windows and with sinks.  From these lengths follows what is done by whom, and what is left in the end.
"""

from __future__ import annotations

import math
from dataclasses import replace

from spdsl.analysis.device import Rate
from spdsl.analysis.plans import GROUP_ROWS
from spdsl.analysis.work import Work

SORTED = 0.1
"""The share of the longest program that is not hidden behind others where the longest of all heads start first."""

OVERLAP = 0.5
"""What is left of a program's own time where it begins while the one before it ends, as all do but the first."""

PROGRAM = 2.0
"""Tiles that take about as long as what a program does beside its own; for the number of turns alone."""

ROUNDS = 64
"""Rounds after which all multiprocessors have met rows of all lengths."""


PARTS = 2
"""Parts of all long rows together, for each multiprocessor of the device: what bounds their memory."""

TURNS = 16
"""The least number of tiles that is worth a part of its own."""


def cut_into(rows: int, turns: int, least: int, multiprocessors: int) -> int:
    """Into how many parts ``rows`` long rows are cut, over heads and sequences, which have at most ``turns`` tiles
    each, and at least ``least`` for a part."""
    return max(1, min(PARTS * multiprocessors // max(1, rows), turns // least))


def cut_parts(work: Work, multiprocessors: int) -> int:
    """All parts of long rows together; 0 where none is cut."""
    parts = cut_into(work.long, work.most, TURNS, multiprocessors)
    return work.long * parts if parts > 1 else 0


def as_cut(work: Work, multiprocessors: int) -> Work:
    """The work with a program for each part of a long row."""
    parts = cut_parts(work, multiprocessors)
    return replace(work, programs=work.programs - work.long + parts) if parts else work


def held(work: Work, count: float, longest: float, multiprocessors: int, rate: Rate) -> float:
    """How much of a ``count`` the busiest multiprocessor does, of which the longest program does ``longest``; what is
    done by one program alone counts as often as the ``rate`` says."""
    if goes_round(work, multiprocessors):
        return longest * _rounds(work, multiprocessors)
    own = longest * rate.alone
    if work.programs <= multiprocessors:
        return own
    tail = SORTED if _longest_first(work) else rate.tail
    return max(own, longest * _long_turns(work, multiprocessors), count / multiprocessors + tail * own)


def goes_round(work: Work, multiprocessors: int) -> bool:
    """Whether each program that is started does every so many-th tile of its own side."""
    return work.even and _is_long(work, multiprocessors)


def program_share(work: Work, multiprocessors: int) -> float:
    """The share of a program's own time that counts."""
    if not (work.even or work.queued) or not _is_long(work, multiprocessors):
        return 1.0
    return OVERLAP + (1 - OVERLAP) * _at_once(work, multiprocessors) / work.programs


def from_a_queue(work: Work, multiprocessors: int) -> bool:
    """Whether programs take tiles of their own from a queue."""
    return work.queued and _is_long(work, multiprocessors)


def _is_long(work: Work, multiprocessors: int) -> bool:
    """Whether there is so much to do that programs do several tiles of their own, if they can."""
    return work.programs > 2 * _at_once(work, multiprocessors)


def _at_once(work: Work, multiprocessors: int) -> int:
    """Programs that run side by side, of kernels that do several tiles of their own."""
    return multiprocessors * (2 if work.tiles.block_q == GROUP_ROWS else 1)


def busiest(programs: int, count: float, longest: float, multiprocessors: int, *, alike: bool, tail: float) -> float:
    """The same of programs of which less is known: those that are alike go round in whole turns, the last with the
    longest; others fill what is left by those before them, but for the last."""
    turns = programs / multiprocessors
    if alike:
        mean = count / programs if programs else 0.0
        return mean * math.ceil(turns) + max(0.0, longest - mean)
    return longest if turns <= 1 else max(longest, count / multiprocessors + tail * longest)


def _longest_first(work: Work) -> bool:
    """Whether the longest programs of all heads start first: in kernels whose warps are specialised, where no values of
    a table decide how long rows are."""
    return work.tiles.specialised and not work.before.searched and not work.listed


def _plateau(work: Work) -> float:
    """The share of programs that are as long as the longest."""
    return max(0.0, 2 * work.touched / (work.programs * work.longest) - 1) if work.longest else 1.0


def _long_turns(work: Work, multiprocessors: int) -> int:
    """Turns of all multiprocessors in which programs as long as the longest are done, where the others are too few to
    fill up what the last of these turns leaves; else 0."""
    turns = math.ceil(_plateau(work) * work.programs / multiprocessors)
    longest = work.longest or work.touched / work.programs
    all_of_them = (work.touched + PROGRAM * work.programs) / multiprocessors
    return turns if turns * (longest + PROGRAM) > all_of_them else 0


def _rounds(work: Work, multiprocessors: int) -> float:
    """What the busiest does, in longest programs, where tiles are counted through, head by head, the longest of each
    first, and whoever has done one takes the one that stands as many places further as there are multiprocessors."""
    rows = max(1, work.programs // work.heads)
    ramp = (1 - _plateau(work)) * rows
    turns = math.ceil(work.programs / multiprocessors)
    seen = min(turns, ROUNDS)

    def length(row: int) -> float:
        return min(1.0, (row + 0.5) / ramp) if ramp else 1.0

    def met(start: int) -> float:
        return sum(length(rows - 1 - (start + turn * multiprocessors) % rows) for turn in range(seen))

    most = max(met(start) for start in range(0, rows, max(1, rows // 32)))
    return most + (turns - seen) * (1 - ramp / rows / 2)
