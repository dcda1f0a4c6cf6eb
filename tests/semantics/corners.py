"""Patterns from the corners of the language, each with the same set written again in plain Python."""

from __future__ import annotations

from tests.semantics.corners_of_numbers import ARITHMETIC, DRAWS, EXTREMES, FUNCTIONS, REDUCTIONS
from tests.semantics.corners_of_places import FROM, GAPS, NESTED, PYRAMID, SORTED, TILES, WINDOWS
from tests.semantics.corners_of_tables import CALLS, CHOICES, COUNTING, LATE, LIBRARY, OWN, PARTIAL, SOFTMAXES, TREE

CORNERS = (
    NESTED, FROM, TILES, SORTED, WINDOWS, GAPS, PYRAMID, PARTIAL, TREE, OWN, CHOICES, SOFTMAXES, REDUCTIONS, EXTREMES,
    DRAWS, ARITHMETIC, FUNCTIONS, CALLS, LIBRARY, LATE, COUNTING,
)  # fmt: skip
