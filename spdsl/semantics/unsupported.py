"""Constructs that the grammar reads and the checker refuses by name, so that each can be added where it belongs."""

from __future__ import annotations

UNSUPPORTED = frozenset(
    (
        "dot", "silu", "elu", "sigmoid", "logsumexp", "previous", "delta", "hedgehog", "taylor",
    )
)  # fmt: skip
"""Functions of scores, tensors and recurrent states."""

UNSUPPORTED_SETTINGS = frozenset(("skip", "times", "decay", "update", "normalize", "fit"))
"""Clauses of skipping, reweighting and recurrent states."""
