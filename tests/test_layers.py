"""Imports run one way down the layers, and a check of a file starts without the heavy packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "spdsl"
BARE = {"grammar", "codegen", "runtime", "patterns"}

# From the bottom to the top; a module may import its own layer and those above it in this list.
LAYERS = (
    ("spdsl.diagnostics",),
    ("spdsl.cache",),
    ("spdsl.grammar",),
    ("spdsl.semantics",),
    ("spdsl.analysis",),
    ("spdsl.codegen",),
    ("spdsl.runtime",),
    (
        "spdsl.foresight",
        "spdsl.library",
        "spdsl.pipeline",
        "spdsl.planning",
        "spdsl.prepare",
        "spdsl.arguments",
        "spdsl.kernels",
        "spdsl.walks",
        "spdsl.states",
        "spdsl.counting",
        "spdsl.pick_counts",
        "spdsl.costs",
        "spdsl.choices",
        "spdsl.trials",
        "spdsl.tuning",
        "spdsl.profiling",
        "spdsl.whatif",
        "spdsl.explain",
        "spdsl.drawn_sets",
        "spdsl.launched",
        "spdsl.selection_work",
        "spdsl.selection_costs",
        "spdsl.extrapolation",
        "spdsl.foretold",
        "spdsl.merging",
        "spdsl.selecting",
        "spdsl.staged",
        "spdsl.stage_tuning",
        "spdsl.reuse",
        "spdsl.reuse_plan",
        "spdsl.prove",
        "spdsl.remarks",
        "spdsl.samples",
    ),
    (
        "spdsl.loading",
        "spdsl.api",
        "spdsl.ahead",
        "spdsl.language",
        "spdsl.decorator",
        "spdsl.nn",
        "spdsl.diffusion",
        "spdsl.models",
        "spdsl.reuse_search",
        "spdsl.layouts",
        "spdsl.flex",
        "spdsl.showing",
    ),
    ("spdsl.picture", "spdsl.page", "spdsl.doctor"),
    ("spdsl.editor",),
    ("spdsl.cli", "spdsl.__main__"),
)
# The meaning of a pattern must not depend on how it is made fast, nor the fast paths on it.
REFERENCE = "spdsl.reference"
REFERENCE_MAY_IMPORT = ("spdsl.diagnostics", "spdsl.grammar", "spdsl.semantics", "spdsl.analysis", REFERENCE)
MAY_IMPORT_REFERENCE = ("spdsl.loading", "spdsl.api", "spdsl.cli", REFERENCE)

HEAVY = ("torch", "triton", "sympy", "networkx", "numpy", "matplotlib", "lark", "jinja2", "islpy")


def modules() -> Iterator[tuple[str, Path]]:
    """Names and files of all modules; the symbolic links of the package are followed."""
    folders = [PACKAGE]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            if entry.is_dir():
                folders.append(entry)
            elif entry.suffix == ".py":
                parts = entry.relative_to(ROOT).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), entry


def imports(name: str, path: Path) -> Iterator[str]:
    """Every module that ``path`` imports, also inside functions, but not those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    ignored = {id(inner) for node in ast.walk(tree) if _for_types(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def layer(name: str) -> int | None:
    return next((number for number, prefixes in enumerate(LAYERS) if within(name, prefixes)), None)


MODULES = dict(modules())


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in MODULES if name != "spdsl" and layer(name) is None and not within(name, (REFERENCE,))]
    assert not homeless, f"add them to LAYERS in {Path(__file__).name}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_one_way(name: str) -> None:
    own = layer(name)
    for imported in imports(name, MODULES[name]):
        assert imported.split(".")[0] not in BARE, f"{name} imports {imported} under its bare name"
        if name == "spdsl" or not within(imported, ("spdsl",)):
            continue
        if within(name, (REFERENCE,)):
            assert within(imported, REFERENCE_MAY_IMPORT), f"{name} imports {imported}"
        elif within(imported, (REFERENCE,)):
            assert within(name, MAY_IMPORT_REFERENCE), f"{name} imports {imported}"
        elif (other := layer(imported)) is not None:
            assert own is not None, f"{name} has no layer"
            assert other <= own, f"{name} imports {imported}, which is above it"


def test_a_reversed_import_is_found(tmp_path: Path) -> None:
    path = tmp_path / "tiles.py"
    path.write_text("def late():\n    from ..cli import main\n    import spdsl.runtime.calls\n")
    found = list(imports("spdsl.analysis.tiles", path))
    assert found == ["spdsl.cli.main", "spdsl.runtime.calls"]
    assert layer("spdsl.cli.main") > layer("spdsl.analysis.tiles")  # type: ignore[operator]


def loaded(code: str) -> tuple[set[str], float]:
    """The heavy packages that a fresh interpreter has loaded after ``code``, and how long it took."""
    report = f"\nimport sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1])), time.perf_counter() - start


def test_import_is_light() -> None:
    found, seconds = loaded("import spdsl")
    print(f"import spdsl: {seconds:.2f} s")
    assert not found


def test_what_a_call_needs_is_light() -> None:
    """Sympy and torch's compiler take a second each, of which a process that starts from the cache has no more."""
    code = "import spdsl.api, sys; assert 'torch._dynamo' not in sys.modules or 'torch._dynamo' in _before"
    found, _ = loaded("import sys, torch; _before = set(sys.modules)\n" + code)
    assert not found & {"sympy", "networkx", "matplotlib", "lark"}


@pytest.mark.parametrize(("command", "needed"), [("check", {"islpy"}), ("fmt --check", set())])
def test_check_is_light(command: str, needed: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Checking asks isl what to warn of, in a process of its own; it loads in hundredths of a second."""
    path = ROOT / "patterns" / "streaming.spat"
    words = ["spdsl", *command.split(), str(path)]
    code = f"import sys; sys.argv = {words!r}\nfrom spdsl.cli.main import run\nassert run(sys.argv[1:]) == 0"
    found, seconds = loaded(code)
    with capsys.disabled():
        print(f"\nspdsl {command}: {seconds:.2f} s with the start of Python", end=" ")
    assert found <= needed
