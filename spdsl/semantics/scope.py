"""Names: the built-in ones, the reserved ones, and those that a pattern declares."""

from __future__ import annotations

from collections.abc import Iterator

from spdsl.diagnostics import Span
from spdsl.semantics.nodes import Apply, Const, Extent, Index
from spdsl.semantics.values import AxisRef, Entry, Scalar, TensorRef, Value


def _index(name: str) -> Scalar:
    return Scalar(expr=Index(name=name), axes=frozenset((name,)))


_CAUSAL = Scalar(
    expr=Apply(op="le", args=(Index(name="k"), Index(name="q")), dtype="bool"), axes=frozenset(("q", "k")), size=3
)

BUILTINS: dict[str, Value] = {
    **{name: _index(name) for name in ("q", "k", "h", "g", "b")},
    **{name: Scalar(expr=Extent(name=name)) for name in ("n", "nq", "d", "heads", "groups", "layer")},
    **{name: TensorRef(name=name) for name in ("Q", "K", "V")},
    "causal": _CAUSAL,
    "all": Scalar(expr=Const(value=True)),
    "true": Scalar(expr=Const(value=True)),
    "false": Scalar(expr=Const(value=False)),
    "token": AxisRef(name="token"),
}
"""Names that mean something everywhere."""

WORDS = frozenset(("and", "or", "not", "in", "if", "then", "else", "attend", "linear"))
"""Words of expressions: no declaration may take them."""

ARGUMENTS = frozenset(
    ("q", "k", "v", "nk", "layer", "backend", "deterministic", "return_lse", "q_start", "k_start", "k_len", "pages")
)
"""Keywords of a call from Python: no parameter or input may take them."""

TYPES = ("int", "float", "bool")


class Scope:
    """Declared names, innermost first; those of an enclosing pattern are not visible from a `def`.

    ``coordinates`` are the names that may follow ``q.`` and ``k.``; a `def` sees those of its caller.
    """

    def __init__(self, coordinates: dict[str, str] | None = None) -> None:
        self.entries: dict[str, Entry] = {}
        self.coordinates: dict[str, str] = {} if coordinates is None else coordinates

    def declare(self, name: str, value: Value, span: Span | None, kind: str) -> Entry:
        """Add a name; the caller has made sure that it is free."""
        entry = Entry(value=value, span=span, kind=kind)
        self.entries[name] = entry
        return entry

    def find(self, name: str) -> Entry | None:
        """The entry of a declared name, marked as used."""
        entry = self.entries.get(name)
        if entry is not None:
            entry.used = True
        return entry

    def unused(self) -> Iterator[tuple[str, Entry]]:
        """Names that nothing has asked for."""
        return ((name, entry) for name, entry in self.entries.items() if not entry.used)
