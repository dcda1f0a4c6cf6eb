"""Mistakes in functions under `@spdsl.pattern`: named, placed in the Python file, with a mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import spdsl
from tests.decorator.test_same import defined

HEAD = "import math, torch, spdsl\nfrom typing import Annotated\nTABLE = torch.zeros(4)\n\n"
BODIES = {
    "ands": "return causal & (q - k < window)",
    "ors": "return causal | near",
    "in place of not": "return ~causal",
    "not in": "return q not in (1, 2)",
    "if": "if window > 3:\n        return causal\n    return k == q",
    "loop": "for step in range(4):\n        keep(q - k == step)",
    "list": "return q in [1, 2]",
    "slice": "return TABLE[1:2] == q",
    "lambda": "near = lambda x: x < 4\n    return near(q)",
    "comprehension": "return any(q == x for x in (1, 2))",
    "none": "return None",
    "nothing": "return",
    "unused value": "causal\n    return causal",
    "two names": "a, b = 1, 2\n    return q < a",
    "changed value": "a = 1\n    a += 2\n    return q < a",
    "after return": "return causal\n    keep(causal)",
    "module": "return math.sqrt(q - k) < window",
    "tensor": "return TABLE[q] == 0",
    "meaning": "return causal and window",
    "unknown name": "return causal and widow > q",
    "letters outside of ASCII": 'größe = "é"\n    return causal and größe',
    "not given": "return causal and h < 2",
    "axis": "blk = axis(q)\n    return causal",
    "grid": "grid(4, 4)\n    return causal",
    "keep": "keep(causal, q - k < window)",
    "bias": "bias(1, weight=2)\n    return causal",
    "source": "keep(causal, source=3)",
    "long chain": f"return {' + '.join(['q'] * 200)} > k",
    "large": f"return q < {2**63}",
}
SIGNATURES = {
    "no type": "def mine(q, k, window):\n    return q - k < window",
    "other type": "def mine(q, k, window: str):\n    return q - k < window",
    "unknown type": "def mine(q, k, window: Nothing):\n    return q - k < window",
    "star": "def mine(q, k, *windows: int):\n    return q == k",
    "default of a name": "def mine(q, k=3):\n    return q == k",
    "default of a kind": "def mine(q, k, window: int = None):\n    return q == k",
    "default out of range": "def mine(q, k, w: Annotated[int, spdsl.Within(1, 4)] = 9):\n    return q - k < w",
    "input": 'def mine(q, k, doc: spdsl.Input("int[token"):\n    return doc[q] == doc[k]'.replace('n"', 'n")'),
    "more than an input": 'def mine(q, k, doc: spdsl.Input("int[token]  keep all")):\n    return doc[q] == doc[k]',
    "taken": "def top(x):\n    return x > 3\n\n@spdsl.pattern\ndef mine(q, k):\n    return top(q - k)",
    "long definition": "def f(x):\n    y = x\n    return y > 3\n\n@spdsl.pattern\ndef mine(q, k):\n    return f(q - k)",
    "circle": "def f(x):\n    return f(x) > 3\n\n@spdsl.pattern\ndef mine(q, k):\n    return f(q - k)",
    "docstring only": 'def mine(q, k):\n    """Nothing."""',
}


def message(function: str) -> str:
    names_helper = "@spdsl.pattern\n" not in function
    with pytest.raises(spdsl.SpatError) as caught:
        defined(HEAD + ("@spdsl.pattern\n" if names_helper else "") + function + "\n")
    for each in caught.value.diagnostics:
        assert each.help
        assert each.span is not None
    return "\n\n".join(each.render() for each in caught.value.diagnostics)


def test_of_bodies(golden: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.decorator.test_same._numbers", iter(range(100)))
    heads = {name: f"def mine(q, k, causal, window: int = 4):\n    {body}" for name, body in BODIES.items()}
    golden("\n\n".join(f"# {name}\n{message(text)}" for name, text in heads.items()) + "\n")


def test_of_signatures(golden: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.decorator.test_same._numbers", iter(range(100)))
    golden("\n\n".join(f"# {name}\n{message(text)}" for name, text in SIGNATURES.items()) + "\n")


def test_places_are_lines_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_patterns.py"
    file.write_text(
        "import spdsl\n\n\f\n# é\nclass Kept:\n    @staticmethod\n    @spdsl.pattern\n"
        "    def mine(q, k, causal,\n             window: int):\n        return (causal\n                and window)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(spdsl.SpatError) as caught:
        import own_patterns  # noqa: F401
    assert caught.value.place == f"{file}:11:21"
    assert "                and window)\n" in str(caught.value)


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (lambda: spdsl.pattern(3), "SP111"),
        (lambda: spdsl.pattern(lambda q, k: q > k), "SP111"),
        (lambda: spdsl.pattern(eval("exec('def f(q): return q') or locals()['f']")), "SP640"),  # noqa: S307
    ],
)
def test_what_is_no_function_with_a_source(made: Callable[[], object], code: str) -> None:
    with pytest.raises(spdsl.SpatError) as caught:
        made()
    assert caught.value.code == code
    assert caught.value.help
