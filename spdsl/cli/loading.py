"""From a word of the command line to a pattern of the Python API, with its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spdsl.cli.files import read
from spdsl.cli.options import Value, fit_tuples
from spdsl.pipeline import read as read_pattern

if TYPE_CHECKING:
    from spdsl.api import Pattern


def load_pattern(word: str, parameters: Mapping[str, Value]) -> tuple[Pattern, dict[str, Value]]:
    """The checked pattern, and its parameters with single numbers made tuples where tuples are declared.

    Raises:
        SpatError: it cannot be read or is not right.
    """
    given = read(word)
    checked = read_pattern(given.text, source=given.name, name=given.pattern, resolve=given.resolve)
    from spdsl.api import Pattern  # imports torch, for which a mistake in the pattern should not wait

    return Pattern(checked), fit_tuples(checked, parameters)
