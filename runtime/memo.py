"""What is known while some rows of queries are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True, kw_only=True)
class Memo:
    """What is known while some rows are computed: arrays by stage and rows, and rows made from rows."""

    arrays: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    rows: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
