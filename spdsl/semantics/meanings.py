"""What every word, operator and function of the language means, in one sentence each: what editors show.

The keys are those of the grammar and of the checker's own tables; a test compares them.  What is refused by name has
no sentence here but `REFUSED`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """How a construct is written, what it gives, and its heading in ``docs/language.md``."""

    form: str
    text: str
    section: str = "expressions"


REFUSED = "The grammar reads this word; the compiler does not support it yet and refuses it by name (SP290)."

NAMES: dict[str, Meaning] = {
    name: Meaning(form=form, text=text, section="built-in-names")
    for name, form, text in (
        ("q", "q: int", "The absolute position of the query, from 0."),
        ("k", "k: int", "The absolute position of the key, from 0."),
        ("h", "h: int", "The query head."),
        ("g", "g: int", "The key/value head that the query head `h` reads: `h // (heads // groups)`."),
        ("b", "b: int", "The sequence of the batch."),
        ("n", "n: int", "How many keys there are."),
        ("nq", "nq: int", "How many queries there are: the last `nq` positions, unless a call says otherwise."),
        ("d", "d: int", "The head dim of queries and keys."),
        ("heads", "heads: int", "How many query heads there are."),
        ("groups", "groups: int", "How many key/value heads there are."),
        (
            "layer",
            "layer: int",
            "The number given as `layer=` when the pattern is compiled; a pattern that uses it needs one.",
        ),
        ("Q", "Q: float[h, q, d]", "The queries of the call."),
        ("K", "K: float[g, k, d]", "The keys of the call."),
        ("V", "V: float[g, k, d]", "The values of the call."),
        ("causal", "causal: bool", "The set of pairs whose key is no later than its query: `k <= q`."),
        (
            "all",
            "all: bool",
            "The set of all pairs. As a function, `all(x, per = …)`, whether all members are in a set.",
        ),
        ("true", "true: bool", "True; as a set, all pairs."),
        ("false", "false: bool", "False; as a set, no pair."),
        ("token", "token", "The axis of positions, in declarations."),
    )
}
"""Built-in names."""

FUNCTIONS: dict[str, Meaning] = {
    **{
        name: Meaning(form=form, text=text, section="functions")
        for name, form, text in (
            ("abs", "abs(x)", "The magnitude: an int of an int, else a float."),
            ("isqrt", "isqrt(x)", "The floor of the square root of an int; 0 below 0."),
            ("is_pow2", "is_pow2(x)", "Whether an int is 1, 2, 4, 8, …; false for 0 and below."),
            ("bitlen", "bitlen(x)", "How many bits an int takes, without its sign: 0 → 0, 1 → 1, 2 and 3 → 2, 4 → 3."),
            ("sqrt", "sqrt(x)", "The square root, a float."),
            ("exp", "exp(x)", "e to the power x, a float."),
            ("log", "log(x)", "The natural logarithm, a float."),
            ("float", "float(x)", "The same number as a float."),
            ("floor", "floor(x)", "The largest int that is no larger."),
            ("ceil", "ceil(x)", "The smallest int that is no smaller."),
            ("clamp", "clamp(x, low, high)", "`min(max(x, low), high)`."),
            ("relu", "relu(x)", "`max(x, 0.0)`."),
        )
    },
    **{
        name: Meaning(form=form, text=text, section="sets-and-reductions")
        for name, form, text in (
            (
                "min",
                "min(x, y, …) or min(x, per = q.blk)",
                "The least of several numbers, or of those of a block or axis.",
            ),
            (
                "max",
                "max(x, y, …) or max(x, per = q.blk)",
                "The largest of several numbers, or of those of a block or axis.",
            ),
            ("any", "any(x, per = q.blk)", "Whether some member is in a set; over nothing, false."),
            ("all", "all(x, per = q.blk)", "Whether all members are in a set; over nothing, true."),
            ("sum", "sum(x, per = q.blk)", "The sum of numbers, or how many are in a set."),
            ("mean", "mean(x, per = k.blk)", "The mean of numbers or vectors, or the share that is in a set."),
        )
    },
    "noise": Meaning(
        form="noise(seed, per = (i, j, …))",
        text="Uniform in [0, 1) for each combination of one to four ints: Philox4x32-10, the seed as its key.",
        section="random-selections",
    ),
    **{
        name: Meaning(form=form, text=text, section="selections-by-scores")
        for name, form, text in (
            ("only", "x |> only(SET)", "Removes what is outside the set: reductions ignore it, softmax gives it 0."),
            (
                "top",
                "x |> top(n)",
                "The set of the n largest along the axis of keys, or `over = …`; ties to the smaller index.",
            ),
            ("top_p", "x |> top_p(p)", "The set of as many of the largest as it takes for the share p of the sum."),
            ("force", "x |> force(SET)", "Brings entries back and puts them first; they count in `top(n)` once."),
            (
                "score",
                "score(A, B)",
                "Products of vectors along the free axis that both have, by default over √(its size).",
            ),
            ("unit", "unit(x)", "Each vector divided by its length; zeros stay zeros."),
            ("norm", "norm(x)", "The length of each vector."),
            ("mix", "mix(share, V)", "For each query the sum of vectors of keys, each times its share."),
            ("smooth", "x |> smooth(5)", "The mean of neighbours along the axis of keys; what is absent counts as 0."),
            ("descend", "x |> descend(per = k.blk)", "The best value that halving each block of keys meets."),
            ("softmax", "x |> softmax", "The softmax along the axis of keys, or `over = …`."),
        )
    },
    **{
        name: Meaning(form=form, text=text, section="branches-and-exports")
        for name, form, text in (
            ("at", "at(x, q)", "Gives each position the value of its block."),
            ("merge", "merge(a, b, overlap = counted)", "One softmax over the keys of several, by their LSEs."),
        )
    },
}
"""Built-in functions."""

OPERATORS: dict[str, Meaning] = {
    sign: Meaning(form=form, text=text)
    for sign, form, text in (
        ("+", "a + b", "The sum: an int of two ints, else a float."),
        ("-", "a - b, -x", "The difference, or the number with its sign turned."),
        ("*", "a * b", "The product: an int of two ints, else a float."),
        ("/", "a / b", "The quotient, a float."),
        ("//", "a // b", "The quotient rounded down: `-1 // 2 == -1`."),
        ("%", "a % b", "`a - b * (a // b)`; has the sign of `b`."),
        ("**", "a ** b", "The power; of ints an int, unless the exponent may be negative. Groups to the right."),
        ("<", "a < b", "Less than. Comparisons chain: `0 <= q - k < window`."),
        ("<=", "a <= b", "At most. Comparisons chain: `0 <= q - k <= window`."),
        (">", "a > b", "More than. Comparisons chain."),
        (">=", "a >= b", "At least. Comparisons chain."),
        ("==", "a == b", "Equal: two numbers, or two bools."),
        ("!=", "a != b", "Unequal: two numbers, or two bools."),
        ("|>", "x |> f(a)", "`f(x, a)`: the stage that follows takes what stands before."),
        ("..", "low..high", "A range, both ends inclusive; either may be left out."),
        ("=", "name = value", "A default, a definition, or an argument by name."),
    )
}
"""Signs."""

WORDS: dict[str, Meaning] = {
    word: Meaning(form=form, text=text, section=section)
    for word, form, text, section in (
        ("and", "a and b", "Of bools, or of sets: the pairs in both.", "expressions"),
        ("or", "a or b", "Of bools, or of sets: the pairs in either.", "expressions"),
        ("not", "not a", "Of a bool, or of a set: the pairs outside.", "expressions"),
        (
            "in",
            "x in (a, b), q in video, x: int in 1..",
            "One of several values; inside a named grid; a range.",
            "expressions",
        ),
        (
            "if",
            "if C then A else B",
            "A choice by any condition: a parameter, a head, a layer, positions.",
            "expressions",
        ),
        ("then", "if C then A else B", "What holds where the condition is true.", "expressions"),
        ("else", "if C then A else B", "What holds where the condition is false.", "expressions"),
        (
            "use",
            'use "file.spat"',
            "Brings in the definitions and patterns of a file beside this one, or of the library.",
            "let-def-use-and-calls",
        ),
        ("def", "def name(x, y) = …", "A pure function, written out where it is called.", "let-def-use-and-calls"),
        (
            "pattern",
            "pattern name(parameters) { … }",
            "A set of (query, key) pairs, and how their logits are made.",
            "a-first-pattern",
        ),
        ("input", "input name: int[token]", "A tensor that is given at each call, by name.", "inputs"),
        (
            "sorted",
            "input name: int[token] sorted",
            "A promise, which is checked: the table never falls from one position to the next.",
            "inputs",
        ),
        (
            "grid",
            "grid (y: height, x: width)",
            "Numbers positions in row-major order; each coordinate is an axis.",
            "grids",
        ),
        ("axis", "axis blk = token by 64", "Divides positions and gives each a coordinate: `q.blk`, `k.blk`.", "axes"),
        ("by", "axis blk = token by 64", "The length of a member, or a sorted table of them.", "axes"),
        ("step", "axis win = token by 32 step 16", "The distance between the starts of windows.", "axes"),
        ("into", "axis part = token into 8", "The number of parts of nearly equal length.", "axes"),
        ("let", "let name = …", "Names a value: a number, a set, a tuple, a softmax.", "let-def-use-and-calls"),
        (
            "export",
            "export name = …",
            "A value that `attn.exports(…)` gives beside the output.",
            "branches-and-exports",
        ),
        ("return", "return …", "The softmax, or the sum of several, that the pattern is.", "attention"),
        ("keep", "keep SET", "The pairs that take part in the softmax; several are a union.", "attention"),
        (
            "from",
            "keep SET from (K1, V1), grid … from start",
            "Other keys and values; where a grid begins.",
            "branches-and-exports",
        ),
        (
            "weight",
            "keep SET from (K1, V1) weight w",
            "Adds log w to the logits of these keys.",
            "branches-and-exports",
        ),
        ("attend", "attend { … } or attend(Q, K, V) { … }", "One softmax over a set of pairs.", "attention"),
        ("linear", "linear(Q, K, V) { … }", REFUSED, "read-but-not-supported-yet"),
        ("bias", "bias x", "Is added to the logit, after scale and soft cap.", "attention"),
        ("scale", "scale x", "The factor of q · k; 1 / √d by default.", "attention"),
        ("softcap", "softcap x", "Bounds logits smoothly: softcap · tanh(s / softcap).", "attention"),
        ("sink_logit", "sink_logit x", "A logit without a key, in the denominator alone.", "attention"),
    )
} | {
    word: Meaning(form=f"{word} …", text=REFUSED, section="read-but-not-supported-yet")
    for word in ("skip", "times", "decay", "update", "normalize", "fit")
}
"""Words of the grammar."""

TYPES: dict[str, Meaning] = {
    "int": Meaning(form="int", text="A whole number; 64 bits, 32 in kernels.", section="values-and-types"),
    "float": Meaning(
        form="float", text="A number; where an int meets it, a float comes out.", section="values-and-types"
    ),
    "bool": Meaning(form="bool", text="True or false; an array of them is a set.", section="values-and-types"),
}
"""Types of parameters and inputs."""

MEMBERS: dict[str, Meaning] = {
    "first": Meaning(form="k.blk.first", text="The first position of that member.", section="axes"),
    "last": Meaning(
        form="k.blk.last", text="The last position of that member; may lie past the end of the data.", section="axes"
    ),
    "size": Meaning(form="k.blk.size", text="How many positions of that member exist.", section="axes"),
    "count": Meaning(form="blk.count", text="How many members the axis has.", section="axes"),
}
"""What follows a coordinate, and (``count``) an axis."""
