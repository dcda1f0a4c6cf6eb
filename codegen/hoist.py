"""Where the parts of a kernel's expressions are computed.

From the expressions of a plan to expressions without loads and without repeated work: loads, and parts that do not
change inside a loop, get a name in the outermost scope where everything they depend on is known.  Nothing is
simplified.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from spdsl.codegen.blocks import Block, Define, Gather
from spdsl.semantics.nodes import Apply, Expr, Load, Param
from spdsl.semantics.rewrite import children, free_indices, walk

CHEAP = frozenset({"add", "sub", "neg", "mul", "lt", "le", "gt", "ge", "eq", "ne", "not"})


class Hoist:
    """The scopes of one kernel, outermost first, each with the indices known from it on.

    ``blocks[s]`` collects the definitions of scope ``s``.
    """

    def __init__(
        self, scopes: tuple[frozenset[str], ...], gather: Callable[[str, Load, tuple[Expr, ...]], Gather]
    ) -> None:
        self._scopes = scopes
        self._gather = gather
        self._names: dict[Expr, Param] = {}
        self._homes: dict[str, int] = {}
        self._taken: set[str] = set()
        self._repeated: set[Expr] = set()
        self.blocks: list[list[Block]] = [[] for _ in scopes]

    def share(self, roots: Iterable[Expr]) -> None:
        """Find the parts that occur more than once among ``roots``; they are computed once."""
        counts = Counter(node for root in roots for node in _occurrences(root))
        self._repeated |= {node for node, count in counts.items() if count > 1 and _weight(node) > 1}

    def place(self, expr: Expr, scope: int = -1) -> Expr:
        """``expr`` for use in ``scope``, its loads and invariant parts named."""
        return self._rewrite(expr, range(len(self._scopes))[scope])

    def home(self, expr: Expr) -> int:
        """The outermost scope in which ``expr`` can be computed."""
        needed = set(free_indices(expr))
        level = max((self._homes[node.name] for node in walk(expr) if isinstance(node, Param)), default=0)
        for number, known in enumerate(self._scopes):
            if needed <= known and number >= level:
                return number
        raise KeyError(f"{sorted(needed)} are not all known in this kernel")

    def take(self, scope: int) -> tuple[Block, ...]:
        """The definitions collected for ``scope`` since the last call."""
        found = tuple(self.blocks[scope])
        self.blocks[scope].clear()
        return found

    def _rewrite(self, expr: Expr, scope: int) -> Expr:
        if not children(expr) and not isinstance(expr, Load):
            return expr
        known = self._names.get(expr)
        if known is not None:
            return known
        home = self.home(expr)
        match expr:
            case Load(indices=indices):
                return self._name_load(expr, tuple(self._rewrite(index, home) for index in indices), home)
            case Apply(args=args):
                worth = (home < scope and _heavy(expr)) or expr in self._repeated
                inner = home if worth else scope
                new = replace(expr, args=tuple(self._rewrite(arg, inner) for arg in args))
                return self._name_value(expr, new, home) if worth else new
            case _:
                raise TypeError(f"{type(expr).__name__} is not expanded")

    def _name_load(self, load: Load, indices: tuple[Expr, ...], home: int) -> Param:
        side = "_".join(sorted(free_indices(load))) or "all"
        name = self._fresh(f"{load.table}_at_{side}")
        self.blocks[home].append(self._gather(name, load, indices))
        return self._remember(load, name, home)

    def _name_value(self, old: Apply, new: Expr, home: int) -> Param:
        name = self._fresh(_title(old))
        self.blocks[home].append(Define(name=name, value=new))
        return self._remember(old, name, home)

    def _remember(self, expr: Load | Apply, name: str, home: int) -> Param:
        self._homes[name] = home
        param = self._names[expr] = Param(name=name, dtype=expr.dtype)
        return param

    def known(self, name: str, scope: int) -> None:
        """Tell that ``name`` is computed in ``scope`` by other means."""
        self._taken.add(name)
        self._homes[name] = scope

    def _fresh(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


def _occurrences(expr: Expr) -> list[Expr]:
    found: list[Expr] = []
    stack = [expr]
    while stack and len(found) < 400:
        node = stack.pop()
        if isinstance(node, Apply):
            found.append(node)
        stack.extend(children(node))
    return found


def _weight(expr: Expr) -> int:
    return sum(isinstance(node, Apply) for node in walk(expr))


def _heavy(expr: Expr) -> bool:
    """Whether computing the expression again in every turn of a loop would cost more than keeping it."""
    return _weight(expr) > 3 or any(isinstance(node, Apply) and node.op not in CHEAP for node in walk(expr))


def _title(expr: Apply) -> str:
    """A readable name for a part: what it is about, then the operation."""
    about = "_".join(sorted(free_indices(expr))) or "call"
    verbs = {"quotient": "block", "floordiv": "block", "remainder": "phase", "mod": "phase"}
    kind = "holds" if expr.dtype == "bool" else verbs.get(expr.op, "part")
    return f"{about}_{kind}"
