"""What the checker makes of right programs; its messages about wrong ones are goldens in ``tests/errors``."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import spdsl
from spdsl.diagnostics import SpatError
from spdsl.grammar.parse import parse
from spdsl.semantics.bind import bind
from spdsl.semantics.check import check, check_all
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import CheckedPattern
from spdsl.semantics.show import print_expr

FILES = {
    "near.spat": 'use "far.spat"\ndef near(x, reach) = abs(x) < reach and not far(x)\ndef never(x) = x',
    "far.spat": "def far(x) = x > 99",
    "round.spat": 'use "there.spat"',
    "there.spat": 'use "round.spat"',
}


def checked(text: str, name: str | None = None) -> CheckedPattern:
    return check(parse(text, "test.spat"), name, resolve=FILES.__getitem__)


def keep(text: str) -> str:
    return print_expr(checked(text).attend.keep)


@pytest.mark.parametrize(
    ("expression", "typed"),
    [
        ("q - k < 3", "q - k < 3"),
        ("0 <= q - k < window", "0 <= q - k and q - k < window"),
        ("q < 2.5", "float(q) < 2.5"),
        ("q // 2.5 == 1", "floor(float(q) / 2.5) == 1"),
        ("q / 2 < 1", "float(q) / 2.0 < 1.0"),
        ("window ** 2 > q", "window ** 2 > q"),
        ("2 ** window > q", "2 ** window > q"),
        ("2 ** other > q", "2.0 ** float(other) > float(q)"),
        ("h in (0, 3)", "h == 0 or h == 3"),
        ("flag == causal", "flag[k] == (k <= q)"),
        ("gate[0] > 0", "gate[0, h] > 0.0"),
        ("gate[0, h + 1] > 0", "gate[0, h + 1] > 0.0"),
        ("q.blk == k.blk", "q.blk == k.blk"),
        ("k.blk.last <= q", "k.blk * size + (size - 1) <= q"),
        ("blk.count > 2", "(n + (size - 1)) // size > 2"),
        ("clamp(q, 1, 5) == k", "min(max(q, 1), 5) == k"),
        ("max(q, k, 7) == 7", "max(max(q, k), 7) == 7"),
        ("mean(causal, per = q.blk) > 1/2", "mean(if k <= q then 1.0 else 0.0, per = q.blk) > 0.5"),
        ("sum(causal, over = q) > 1", "sum(if k <= q then 1 else 0, over = q) > 1"),
        ("any(causal, per = (q.blk, k.blk))", "any(any(k <= q, per = q.blk), per = k.blk)"),
        ("some[1] > q", "some[1] > q"),
        ("floor(q) == ceil(share * q)", "q == ceil(share * float(q))"),
        ("q |> max(k) == q", None),
    ],
)
def test_types(expression: str, typed: str | None) -> None:
    text = (
        "pattern p(window: int in 1.. = 4, other: int = 1, size: int = 8, share: float = 1, some: int[2] = (1, 2)) {\n"
        "  input flag: bool[token]\n  input gate: float[3, h]\n  axis blk = token by size\n"
        f"  let one = flag[k]\n  keep {expression.replace('flag', 'one')}\n}}\n"
    )
    if typed is None:
        with pytest.raises(SpatError):
            checked(text)
    else:
        assert keep(text) == typed


def test_named_grid_guards_comparisons() -> None:
    text = "pattern p() { grid v (y: 3, x: n // 3) from 2  keep q.y == k.y or not (q.x < 2) }"
    inside_q, inside_k = (f"0 <= {side} - 2 and {side} - 2 < 3 * (n // 3)" for side in "qk")
    assert keep(text) == (f"{inside_k} and ({inside_q}) and q.y == k.y or not ({inside_q} and q.x < 2)")


def test_several_keeps_are_a_union() -> None:
    assert keep("pattern p() { keep causal  keep k < 3 }") == "k <= q or k < 3"


def test_choice_of_softmaxes() -> None:
    found = checked("pattern p() { return if layer == 1 then attend { keep causal  bias 1 } else attend { keep all } }")
    assert print_expr(found.attend.keep) == "if layer == 1 then k <= q else true"
    assert found.attend.bias is not None
    assert print_expr(found.attend.bias) == "if layer == 1 then 1.0 else 0.0"


def test_called_patterns_are_inlined() -> None:
    text = (
        "pattern blocks(size: int, past: bool = true) {\n  input doc: int[token]\n  axis blk = token by size\n"
        "  keep q.blk == k.blk and (past or doc[q] == doc[k])\n}\n"
        "pattern p(size: int = 3) {\n  axis blk = token by size\n"
        "  keep blocks(5) or blocks(size = size, past = false) or q.blk < 1\n}"
    )
    found = checked(text)
    assert [axis.name for axis in found.axes] == ["blk", "blk_2", "blk_3"]
    assert [table.name for table in found.tables] == ["doc"]
    bound = bind(found, {}, heads=1, groups=1, head_dim=8)
    assert print_expr(expand(bound, bound.attend.keep)) == (
        "q // 5 == k // 5 or q // 3 == k // 3 and doc[q] == doc[k] or q // 3 < 1"
    )


def test_uses_are_inlined_into_the_text() -> None:
    found = checked('use "near.spat"\npattern p() { keep near(q - k, 4) }')
    assert found.text.startswith("def far(x) = x > 99\n")
    assert "never" not in found.text
    again = check(parse(found.text, "again.spat"))
    assert again.text == found.text
    assert again.attend == found.attend


def test_uses_that_go_round() -> None:
    with pytest.raises(SpatError) as caught:
        checked('use "round.spat"\npattern p() { keep causal }')
    assert caught.value.code == "SP209"


def test_used_file_is_missing() -> None:
    with pytest.raises(SpatError) as caught:
        checked('use "nowhere.spat"\npattern p() { keep near(q - k, 4) }')
    assert [d.code for d in caught.value.diagnostics] == ["SP210"]


def test_last_or_named_pattern() -> None:
    text = "pattern one() { keep causal }\npattern two() { keep all }"
    assert checked(text).name == "two"
    assert checked(text, "one").name == "one"
    with pytest.raises(SpatError, match="did you mean `one`"):
        checked(text, "onne")


def test_all_patterns_and_warnings() -> None:
    text = "pattern one(size: int = 3) { keep causal }\npattern two() { keep caussal }\npattern three() { keep all }"
    found, diagnostics = check_all(parse(text, "test.spat"))
    assert [pattern.name for pattern in found] == ["one", "three"]
    assert [(d.severity, d.code) for d in diagnostics] == [("warning", "SP217"), ("error", "SP201")]


@pytest.mark.parametrize(("axis", "codes"), [("tokens", ["SP222"]), ("token", []), ("place", [])])
def test_an_axis_that_may_be_meant_for_the_keys(axis: str, codes: list[str]) -> None:
    found, diagnostics = check_all(parse(f"pattern p() {{ input doc: int[{axis}] keep doc[q] == doc[k] }}", "p.spat"))
    assert len(found) == 1
    assert [(d.severity, d.code) for d in diagnostics] == [("warning", code) for code in codes]


def test_sharing_keeps_large_programs_small() -> None:
    lets = "".join(f"  let a{i} = {'q' if i == 0 else f'a{i - 1} + a{i - 1}'}\n" for i in range(60))
    with pytest.raises(SpatError) as caught:
        checked(f"pattern p() {{\n{lets}  keep a59 > k\n}}")
    assert caught.value.code == "SP216"


@pytest.mark.parametrize("count", [40, 200])
def test_definitions_that_multiply(count: int) -> None:
    defs = "".join(f"def f{i}(x) = {'x' if i == 0 else f'f{i - 1}(x) + f{i - 1}(x)'}\n" for i in range(count))
    with pytest.raises(SpatError) as caught:
        checked(f"{defs}pattern p() {{ keep f{count - 1}(q) > k }}")
    assert caught.value.code == "SP216"


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nimport spdsl.semantics.check, spdsl.semantics.bind, spdsl.semantics.show\n"
        "sys.exit(', '.join({'torch', 'sympy', 'networkx', 'islpy', 'numpy'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


CHOSEN = """
pattern near(w: int) { keep causal and q - k < w }
pattern capped(w: int) { keep causal and q - k < w  softcap 30 }
"""


@pytest.mark.parametrize("sides", ["near(3) else near(9)", "first else second"])
def test_a_choice_by_key_between_patterns_is_one_between_sets(sides: str) -> None:
    lets = "  let first = near(3)\n  let second = near(9)\n" if "first" in sides else ""
    text = f"{CHOSEN}pattern mine() {{\n{lets}  keep if k % 2 == 0 then {sides}\n}}"
    found = spdsl.loads(text).mask(20, 20)[0].numpy()
    q, k = np.arange(20)[:, None], np.arange(20)[None]
    assert (found == ((k <= q) & (q - k < np.where(k % 2 == 0, 3, 9)))).all()


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("keep if k % 2 == 0 then capped(3) else near(9)", "SP213"),
        ("return if k % 2 == 0 then near(3) else near(9)", "SP214"),
        ("return if k % 2 == 0 then attend { keep causal } else near(9)", "SP213"),
    ],
)
def test_no_choice_by_key_between_softmaxes(statement: str, code: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        spdsl.loads(f"{CHOSEN}pattern mine() {{ {statement} }}")
    assert caught.value.code == code
