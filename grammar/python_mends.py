"""What Python has and the language has not, by the node of Python's tree, and what to write instead."""

from __future__ import annotations

import ast

REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.BitAnd: ("`&`", "Write `and`."),
    ast.BitOr: ("`|` between values", "Write `or`; a pipe leads into a function: `scores | top(4)`."),
    ast.BitXor: ("`^`", "Write `!=` between two bools, `**` for a power."),
    ast.Invert: ("`~`", "Write `not`."),
    ast.UAdd: ("a `+` in front of a value", "Leave it out."),
    ast.LShift: ("`<<`", "Write `* 2 ** …`."),
    ast.RShift: ("`>>`", "Write `// 2 ** …`."),
    ast.MatMult: ("`@`", "Products of vectors are written `score(A, B)`."),
    ast.NotIn: ("`not in`", "Write `not (… in (…))`."),
    ast.Is: ("`is`", "Write `==`."),
    ast.IsNot: ("`is not`", "Write `!=`."),
    ast.If: ("an `if` statement", "A choice is a value: `a if condition else b`."),
    ast.For: ("a loop", "Values have axes: write the value at one pair of `q` and `k`."),
    ast.While: ("a loop", "Values have axes: write the value at one pair of `q` and `k`."),
    ast.AugAssign: ("an assignment that changes a value", "Give the new value a name of its own."),
    ast.AnnAssign: ("a type of a local name", "A name has the type of its value: leave the annotation out."),
    ast.NamedExpr: ("`:=`", "Name the value in a line of its own."),
    ast.Lambda: ("`lambda`", "Define a function beside this one and call it."),
    ast.FunctionDef: ("a function inside a pattern", "Define it beside this one; it becomes a `def`."),
    ast.ListComp: ("a comprehension", "Values have axes; write a tuple, or a reduction such as `sum(x, over=j)`."),
    ast.GeneratorExp: ("a comprehension", "Values have axes; write a tuple, or a reduction such as `sum(x, over=j)`."),
    ast.List: ("a list", "Write a tuple: `(a, b)`."),
    ast.Set: ("a set of Python", "Write a tuple: `x in (a, b)`."),
    ast.Dict: ("a dict", "Give its values one by one."),
    ast.JoinedStr: ("a text with values in it", "The language computes with numbers and sets."),
    ast.Slice: ("a slice", "An index is one position."),
    ast.Starred: ("`*`", "Write the values one by one."),
    ast.Yield: ("`yield`", "Return one value."),
    ast.Assert: ("`assert`", "Give the parameter a range: `Annotated[int, spdsl.Within(1, 8)]`."),
    ast.Raise: ("`raise`", "Give the parameter a range: `Annotated[int, spdsl.Within(1, 8)]`."),
    ast.Import: ("an import inside a pattern", "Import above the function."),
    ast.ImportFrom: ("an import inside a pattern", "Import above the function."),
}
