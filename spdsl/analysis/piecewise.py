"""Piecewise affine values and sets of isl, from expressions in which nothing is opaque any more."""

from __future__ import annotations

import islpy as isl
from islpy import dim_type

from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index


class Piecewise:
    """Piecewise affine values and sets in one space."""

    def __init__(self, space: isl.Space) -> None:
        self.space = space
        self.local = isl.LocalSpace.from_space(space)

    def constant(self, value: int) -> isl.PwAff:
        """The same number everywhere."""
        return isl.PwAff.from_aff(isl.Aff.zero_on_domain(self.local).add_constant_val(isl.Val(value)))

    def parameter(self, name: str) -> isl.PwAff:
        """A parameter of the space."""
        position = self.space.find_dim_by_name(dim_type.param, name)
        return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, dim_type.param, position))

    def position(self, side: str) -> isl.PwAff:
        """The position of a side, ``q`` or ``k``."""
        return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, dim_type.set, "qk".index(side)))

    def value(self, expr: Expr) -> isl.PwAff:
        """The value of an int expression."""
        match expr:
            case Const(value=value):
                return self.constant(int(value))
            case Index(name=name):
                return self.position(name)
            case Extent(name=name):
                return self.parameter(name)
            case Apply(op="where", args=(condition, chosen, other)):
                where = self.holds(condition)
                yes = self.value(chosen).intersect_domain(where)
                return yes.union_add(self.value(other).intersect_domain(where.complement()))
            case Apply(op="floordiv" | "mod" as op, args=(argument, Const(value=divisor))):
                return self._divide(op, self.value(argument), int(divisor))
            case Apply(op="mul", args=(left, right)):
                scale, other = (left, right) if isinstance(left, Const) else (right, left)
                assert isinstance(scale, Const)
                return self.value(other).scale_val(isl.Val(int(scale.value)))
            case Apply(op=op, args=args):
                return self._arithmetic(op, [self.value(a) for a in args])
            case _:
                raise AssertionError(f"not abstracted: {expr}")

    def _divide(self, op: str, value: isl.PwAff, divisor: int) -> isl.PwAff:
        # Python's rules for a negative divisor: x // -d = -x // d, and x % -d = -(-x % d)
        if divisor < 0:
            turned = self._divide(op, value.neg(), -divisor)
            return turned if op == "floordiv" else turned.neg()
        return value.scale_down_val(isl.Val(divisor)).floor() if op == "floordiv" else value.mod_val(isl.Val(divisor))

    def _arithmetic(self, op: str, args: list[isl.PwAff]) -> isl.PwAff:
        match op, args:
            case "add", [a, b]:
                return a.add(b)
            case "sub", [a, b]:
                return a.sub(b)
            case "neg", [a]:
                return a.neg()
            case "abs", [a]:
                return a.max(a.neg())
            case "min", [a, b]:
                return a.min(b)
            case "max", [a, b]:
                return a.max(b)
            case _:
                raise AssertionError(f"not abstracted: {op}")

    def holds(self, expr: Expr) -> isl.Set:
        """The pairs at which a bool expression holds."""
        match expr:
            case Const(value=value):
                return isl.Set.universe(self.space) if value else isl.Set.empty(self.space)
            case Apply(op="and", args=(a, b)):
                return self.holds(a).intersect(self.holds(b)).coalesce()
            case Apply(op="or", args=(a, b)):
                return self.holds(a).union(self.holds(b)).coalesce()
            case Apply(op="not", args=(a,)):
                return self.holds(a).complement().coalesce()
            case Apply(op="where", args=(c, a, b)):
                where = self.holds(c)
                return where.intersect(self.holds(a)).union(where.complement().intersect(self.holds(b))).coalesce()
            case Apply(op="eq" | "ne" as op, args=(a, b)) if a.dtype == "bool":
                return self._same(self.holds(a), self.holds(b), op == "eq")
            case Apply(op=op, args=(a, b)):
                return self._compare(op, self.value(a), self.value(b))
            case _:
                raise AssertionError(f"not abstracted: {expr}")

    def _same(self, a: isl.Set, b: isl.Set, same: bool) -> isl.Set:
        differ = a.subtract(b).union(b.subtract(a))
        return (differ.complement() if same else differ).coalesce()

    def _compare(self, op: str, a: isl.PwAff, b: isl.PwAff) -> isl.Set:
        match op:
            case "lt":
                return a.lt_set(b)
            case "le":
                return a.le_set(b)
            case "gt":
                return a.gt_set(b)
            case "ge":
                return a.ge_set(b)
            case "eq":
                return a.eq_set(b)
            case "ne":
                return a.ne_set(b)
            case _:
                raise AssertionError(f"not abstracted: {op}")
