"""What to say about common mistakes: malformed examples with the sentence that mends them, kept as data.

`errors` looks at where the parser gives up in each example, and takes the first hint whose example agrees with the
user's text in the features that the hint needs (see `errors.Situation`).  A test runs every example through its own
hint.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A malformed text and its mend.  ``{found}`` and ``{before}`` stand for words of the user's text."""

    example: str
    help: str
    needs: tuple[str, ...] = ("before", "found")


HINTS = (
    # ---- the top of a file
    Hint(
        example="pattern p() { keep causal } }",
        help="There is one `}` too many: the pattern is already closed.",
        needs=("found", "top"),
    ),
    Hint(
        example="use streaming",
        help='The path stands in double quotes: `use "{found}.spat"`.',
        needs=("construct", "before", "found"),
    ),
    Hint(example='import "a.spat"', help='Write `use "file.spat"`.', needs=("text", "top")),
    Hint(
        example="keep causal",
        help="A statement stands between the braces of a pattern: `pattern name() { {found} … }`.",
        needs=("top", "statement"),
    ),
    Hint(
        example="causal",
        help="A file holds `use`, `def` and `pattern`: put `{found}` between the braces of a pattern.",
        needs=("top", "found"),
    ),
    # ---- heads
    Hint(
        example="pattern p { keep causal }",
        help="A pattern has parentheses even without parameters: `pattern {before}() {`.",
        needs=("construct", "before", "found", "bracket"),
    ),
    Hint(
        example="pattern p() keep causal",
        help="The statements of a pattern stand in braces: put `{` before `{found}`.",
        needs=("construct", "before", "statement", "bracket"),
    ),
    Hint(
        example="pattern p(): keep causal",
        help="The statements of a pattern stand in braces: write `{` instead of `:`, and `}` at the end.",
        needs=("construct", "before", "found", "bracket"),
    ),
    Hint(
        example="pattern p(window = 5) { keep causal }",
        help="A parameter has a type: `{before}: int = …`.",
        needs=("construct", "before", "found", "bracket"),
    ),
    Hint(
        example="pattern p(window) { keep causal }",
        help="A parameter has a type: `{before}: int`.",
        needs=("construct", "waits_type", "found"),
    ),
    Hint(
        example="pattern p(window, sinks: int) { keep causal }",
        help="A parameter has a type: `{before}: int`.",
        needs=("construct", "waits_type", "found"),
    ),
    Hint(
        example="pattern p(int window) { keep causal }",
        help="The type stands after the name: `{found}: {before}`.",
        needs=("construct", "waits_type", "found"),
    ),
    Hint(
        example="pattern p() { input doc  keep causal }",
        help="An input has a type: `input {before}: int[token]`.",
        needs=("construct", "waits_type"),
    ),
    Hint(
        example="def f(x) { return x }",
        help="A `def` is one expression: `def name(x) = …`.",
        needs=("construct", "before", "found"),
    ),
    Hint(
        example="def f(x): x",
        help="A `def` is one expression: `def name(x) = …`.",
        needs=("construct", "before", "found"),
    ),
    Hint(
        example="def f(x: int) = x",
        help="The parameters of a `def` are names alone: leave the type out.",
        needs=("construct", "before", "found", "bracket"),
    ),
    Hint(
        example="pattern p() { let x: int = 3 }",
        help="A `let` takes its type from its value: `let {before} = …`.",
        needs=("before_that", "before", "found"),
    ),
    # ---- ranges
    Hint(
        example="pattern p(w: int in 1..n) { keep causal }",
        help="The bounds of a range are numbers: write one instead of `{found}`, or leave that side open.",
    ),
    Hint(
        example="pattern p(w: int in n..) { keep causal }",
        help="The bounds of a range are numbers: write one instead of `{found}`, or leave that side open.",
        needs=("waits_range", "found"),
    ),
    Hint(
        example="pattern p(w: int in (1, 2)) { keep causal }",
        help="A range is written `1..8`, `1..` or `..8`, both ends included.",
        needs=("waits_range",),
    ),
    Hint(
        example="pattern p(w: int in 1...5) { keep causal }",
        help="A range has two dots: `1..8`.",
    ),
    Hint(
        example="pattern p(w: int in 1) { keep causal }",
        help="A range has two dots: `1..8`, or `1..` without an upper end.",
        needs=("waits_dots",),
    ),
    # ---- words of other languages
    Hint(
        example="pattern p() { keep a and and b }",
        help="An operand is missing before `{before}`.",
        needs=("before_word", "is_value"),
    ),
    Hint(
        example="pattern p() { let x = a if c else b }",
        help="Write `if … then … else …`: the condition comes first.",
        needs=("before_value", "found", "is_value"),
    ),
    Hint(
        example="pattern p() { let x = if c: a else b }",
        help="Write `if … then … else …`.",
        needs=("waits_then", "found"),
    ),
    Hint(
        example="pattern p() { let x = if c a else b }",
        help="Write `then` before `{found}`: `if … then … else …`.",
        needs=("waits_then", "found"),
    ),
    Hint(
        example="pattern p() { let x = if c then a  keep x }",
        help="An `if … then …` is a value and needs its `else …`.",
        needs=("waits_else", "statement"),
    ),
    Hint(
        example="pattern p() { let x = if c then a }",
        help="An `if … then …` is a value and needs its `else …`.",
        needs=("waits_else", "found"),
    ),
    Hint(
        example="pattern p() { keep (if c then a) }",
        help="An `if … then …` is a value and needs its `else …`.",
        needs=("waits_else", "found"),
    ),
    Hint(
        example="pattern p() { // comment\n keep causal }",
        help="A comment begins with `#`.",
        needs=("waits_statement", "found"),
    ),
    Hint(
        example="pattern p() { /* comment */ keep causal }",
        help="A comment begins with `#`.",
        needs=("waits_statement", "found"),
    ),
    Hint(
        example="pattern p() { keep a not in b }",
        help="Write `not (… in …)`, or put `and` before `not`.",
        needs=("before_value", "found", "is_value"),
    ),
    Hint(example="pattern p() { keep a === b }", help="Equality is written `==`.", needs=("before", "found")),
    Hint(example="pattern p() { keep a <> b }", help="Inequality is written `!=`."),
    Hint(example="pattern p() { keep a => b }", help="Write `>=`.", needs=("found", "next", "is_value")),
    Hint(example="pattern p() { keep a =< b }", help="Write `<=`.", needs=("found", "next", "is_value")),
    # ---- statements
    Hint(
        example="pattern p() { window = 5 }",
        help="A name is given with `let`: `let {found} = …`.",
        needs=("before", "found", "next"),
    ),
    Hint(
        example="pattern p() { let a = 1  b = 2 }",
        help="A name is given with `let`: `let {found} = …`.",
        needs=("before_value", "found", "next", "waits_statement"),
    ),
    Hint(
        example="pattern p() { causal }",
        help="Every statement begins with a word: `keep {found} …` keeps a set, `let` names a value.",
        needs=("before", "found", "waits_statement"),
    ),
    Hint(
        example="pattern p() { (causal) }",
        help="Every statement begins with a word: `keep …` keeps a set, `let` names a value.",
        needs=("before", "found", "waits_statement"),
    ),
    Hint(
        example="pattern p() { return attend { causal } }",
        help="Every clause begins with a word: `keep {found} …` keeps a set, `bias` adds to the logits.",
        needs=("before", "found", "waits_clause"),
    ),
    Hint(
        example="pattern p() { return attend { let a = 1 } }",
        help="Only clauses stand between these braces: put `{found}` before the statement.",
        needs=("waits_clause", "statement"),
    ),
    Hint(
        example="pattern p() { keep causal, near }",
        help="One `keep` takes one set: join several with `and` or `or`.",
        needs=("construct", "before_value", "found", "bracket"),
    ),
    Hint(
        example="pattern p() { axis blk = token  keep causal }",
        help="An axis says how it divides: `axis blk = token by 64`, or `into 256`.",
        needs=("construct", "waits_by"),
    ),
    Hint(
        example="pattern p() { axis blk by 64 }",
        help="An axis says what it divides: `axis {before} = token by 64`.",
        needs=("construct", "before", "found"),
    ),
    # ---- expressions
    Hint(
        example="pattern p() { keep a = b }",
        help="Compare with `==`; `=` gives a value to a name.",
        needs=("found", "is_value"),
    ),
    Hint(
        example="pattern p() { let x = s |> top(2) or a }",
        help="`|>` binds loosest: put the pipe in parentheses before `{found}`.",
        needs=("piped", "operator"),
    ),
    Hint(
        example="pattern p() { let x = s |> 3 }",
        help="After `|>` comes the name of a stage, as in `|> top(4)`.",
        needs=("before",),
    ),
    Hint(
        example="pattern p() { let x = .5 }",
        help="A number begins with a digit: write `0.5`.",
        needs=("found", "next", "waits_value"),
    ),
    Hint(
        example="pattern p() { let x = 1. * a }",
        help="A number does not end in a point: write `1.0`.",
        needs=("before", "before_that"),
    ),
    Hint(
        example="pattern p() { let x = f(a, b,) }",
        help="Remove the comma before `{found}`.",
    ),
    Hint(
        example="pattern p() { let x = a[1:2] }",
        help="There are no slices: an index is one position.",
        needs=("found", "bracket", "is_value"),
    ),
    Hint(
        example="pattern p() { let x = f(a b) }",
        help="Is an operator or a comma missing before `{found}`?",
        needs=("before_value", "found", "bracket", "is_value"),
    ),
    Hint(
        example="pattern p() { keep causal near }",
        help="Is an operator such as `and` missing before `{found}`?",
        needs=("before_value", "found", "is_value"),
    ),
    Hint(
        example="pattern p() { keep q - 2 3 }",
        help="Is an operator missing before `{found}`?",
        needs=("before_value", "found", "is_value"),
    ),
)

# Marks of other languages, longest first, and what to write instead.
CHARACTERS = {
    "&&": "Write `and`.",
    "&": "Write `and`.",
    "||": "Write `or`.",
    "|": "Write `or`; a pipe is written `|>`.",
    "!": "Write `not`; inequality is `!=`.",
    "~": "Write `not`.",
    "¬": "Write `not`.",
    "∧": "Write `and`.",
    "∨": "Write `or`.",
    "≤": "Write `<=`.",
    "≥": "Write `>=`.",
    "≠": "Write `!=`.",
    "∈": "Write `in`.",
    "×": "Write `*`.",
    "·": "Write `*`.",
    "÷": "Write `/` or, for whole numbers, `//`.",
    "−": "This is not the minus of the keyboard: write `-`.",
    "–": "This is a dash: write `-`.",
    "…": "A range has two dots: `1..8`.",
    "^": "A power is written `**`.",
    "?": "Write `if … then … else …`.",
    ";": "Statements need no mark between them: remove it.",
    "'": "Text stands in double quotes.",
    "“": "Text stands in plain double quotes.",
    "”": "Text stands in plain double quotes.",
    "`": "Names stand without marks around them.",
    "@": "Matrix products are written `score` or `dot`.",
    "\\": "A statement may run over several lines without a mark: remove it.",
}
