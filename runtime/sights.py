"""When calls of a kind are watched, which takes longer than to carry them out: the second, the fourth, the eighth.

Steps may be lost again: others need their room, or a backward is unlike the one they hold for.  What a watch costs is
paid by the calls that repeat its steps: if there were enough of these the kind is as good as new, else it waits longer.
"""

from __future__ import annotations

from dataclasses import dataclass

_TRIES = 3
"""Watches of a kind that may come to nothing."""

_PAID = 16
"""Calls by the same steps that are worth a watch."""


@dataclass(slots=True, kw_only=True)
class Sights:
    """``met`` counts calls without steps that might have been watched, ``tries`` watches that came to nothing, and
    ``repeats`` calls by the steps there are now."""

    met: int = 0
    tries: int = 0
    repeats: int = 0

    def is_due(self) -> bool:
        """Whether the call that is met now is watched."""
        if self.tries >= _TRIES:
            return False
        self.met += 1
        return self.met > 1 and self.met & (self.met - 1) == 0

    def lost(self) -> None:
        """The steps are gone."""
        if self.repeats >= _PAID:
            self.met = 1
        self.repeats = 0
