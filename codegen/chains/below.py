"""Of which stages a stage is made, as far as its kernels compute them: arrays that are made beforehand end the way."""

from __future__ import annotations

from spdsl.codegen.chains.rows import belongs_to_rows
from spdsl.semantics.graph import Softmax, Stage, loads, on_side, parts


def below(stages: dict[str, Stage], name: str) -> tuple[str, ...]:
    """The stages of which a stage is made, itself last; those without queries, and reductions that leave a value for
    each row of these, are arrays that are made beforehand."""
    found: dict[str, None] = {}

    def visit(each: str) -> None:
        beforehand = each != name and (on_side(stages[each].axes, "q") is None or belongs_to_rows(stages[each]))
        if each not in found and not beforehand:
            for part in parts(stages[each]):
                for other in sorted(loads(part) & set(stages)):
                    visit(other)
            found[each] = None

    visit(name)
    return tuple(found)


def softmaxes(stages: dict[str, Stage], name: str) -> tuple[str, ...]:
    """The softmaxes of which a stage is made, inner ones first."""
    return tuple(each for each in below(stages, name) if isinstance(stages[each], Softmax))
