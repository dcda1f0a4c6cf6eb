"""Every block of code of the README and of docs/ is run, in the order of its page and in a folder of its own.

What a block is stands behind its fence:

- ``spat``: is checked, and lies in the folder as a file named after its last pattern; ``spat error SP203``: is refused
- ``python``: runs, in one namespace for the page, as in a notebook; ``python gpu``: is compiled alone
- ``console``: each ``$ spdsl …`` prints what stands below it, a line ``…`` standing for any lines; in ``console like``
  numbers may be others
- ``sh``: each ``spdsl …`` is carried out, but for those that take a GPU or minutes, whose words are read
- ``json``, ``toml``: are read; ``text``, ``lua``, ``lisp``: are not ours
"""

from __future__ import annotations

import json
import linecache
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer

from spdsl.cli.main import app, run
from spdsl.library import resolver
from spdsl.pipeline import read

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ spdsl (.*?)\n(.*?)(?=^\$ |\Z)", re.MULTILINE | re.DOTALL)

LONG = ("bench", "tune", "reuse", "compile", "run", "lsp", "cache")
"""Commands whose words are read alone: they take minutes, a GPU or a terminal, or would change the cache."""
STATUSES = (0, 1, 4)
"""What a command that is shown may end with: its text says what is wrong, or refuted."""

MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM
import spdsl.models
model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                     num_attention_heads=4, num_key_value_heads=2))
"""
BEFORE = {"README.md": MODEL}
"""What a page takes for granted."""
FILES = ("local", "mine")
"""Names under which pages speak of a reader's own file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of a page; ``kind`` is what stands behind its fence."""

    page: str
    line: int
    kind: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Block(page=page.name, line=text[: found.start()].count("\n") + 1, kind=found[1].strip(), text=found[2])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        text = (ROOT / "patterns" / "streaming.spat").read_text(encoding="utf-8")
        (tmp_path / f"{name}.spat").write_text(text.replace("pattern streaming", f"pattern {name}"), encoding="utf-8")
    torch.save({"doc": torch.arange(1024) // 100}, tmp_path / "ids.pt")
    torch.save({"q": torch.randn(2, 256, 8), "k": torch.randn(1, 256, 8)}, tmp_path / "layer3.pt")
    return tmp_path


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page(page: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # compilers look functions up by their module
    names = vars(module)
    exec(BEFORE.get(page.name, ""), names)  # noqa: S102
    for block in blocks(page):
        kind, *words = block.kind.split() or [""]
        try:
            KINDS[kind](block, words, names, capsys)
        except (Exception, SystemExit) as mistake:
            raise AssertionError(f"{block.page}, line {block.line}: {mistake}") from mistake


def _spat(block: Block, words: list[str], names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    if words:
        return  # what is refused is in `test_examples.py`
    checked = read(block.text, resolve=resolver(None))
    Path(f"{checked.name}.spat").write_text(block.text, encoding="utf-8")


def _python(block: Block, words: list[str], names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert words in ([], ["gpu"])
    # As a notebook does, so that functions know their source.
    name = f"<{block.page}, line {block.line}>"
    linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
    compile(block.text, name, "exec")
    if not words:
        code = compile(_shorter(block), name, "exec")
        exec(code, names)  # noqa: S102
        capsys.readouterr()


def _shorter(block: Block) -> str:
    """The README shows lengths that take the CPU seconds."""
    return block.text.replace("4096", "512").replace("1000", "100") if block.page == "README.md" else block.text


def _console(block: Block, words: list[str], names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    commands = COMMAND.findall(block.text)
    assert commands, "a block `console` shows commands"
    assert words in ([], ["like"])
    for command, shown in commands:
        capsys.readouterr()
        assert run(shlex.split(command)) in STATUSES
        out = capsys.readouterr().out
        if words or "…\n" in shown:
            assert re.fullmatch(like(shown, numbers=bool(words)), out), out
        else:
            assert out == shown


def like(shown: str, *, numbers: bool) -> str:
    """A regular expression for a text with lines ``…``, and with any ``numbers``."""
    lines = [r"(?:.*\n)*" if line == "…" else re.escape(line) + r"\n" for line in shown.splitlines()]
    found = "".join(lines)
    return re.sub(r"\d+(?:(?:\\\.|,|e\\-)\d+)*", r"\\d+(?:[.,]\\d+|e-\\d+)*", found) if numbers else found


def _sh(block: Block, words: list[str], names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for line in block.text.splitlines():
        given = shlex.split(line, comments=True)
        if not given or given[0] != "spdsl":
            continue
        if given[1] in LONG:
            assert read_words(given[1:]), line
        else:
            assert run(given[1:]) in STATUSES, capsys.readouterr().err
    capsys.readouterr()


def read_words(words: list[str]) -> bool:
    """Whether the command line is right, as far as its words say; nothing is carried out."""
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "commands"):
        name, *words = words
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        command = command.commands[name]
    command.make_context(command.name, list(words), parent=context)
    return True


def _data(parse: Callable[[str], object]) -> Callable[..., None]:
    def check(block: Block, words: list[str], names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        parse(block.text)

    return check


def _toml(text: str) -> None:
    with suppress(ImportError):  # Python 3.10 has none
        import tomllib

        tomllib.loads(text)


KINDS: dict[str, Callable[..., None]] = {
    "spat": _spat,
    "python": _python,
    "console": _console,
    "sh": _sh,
    "json": _data(json.loads),
    "toml": _data(_toml),
    **dict.fromkeys(("text", "lua", "lisp"), _data(str)),
}


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        for block in blocks(page):
            kind = (block.kind.split() or [""])[0]
            assert kind in KINDS, f"{block.page}, line {block.line}: ```{block.kind}"
    assert sum(block.kind == "python" for page in PAGES for block in blocks(page)) >= 25


def test_lines_and_numbers_may_be_left_out() -> None:
    shown = "took 1.5e-08 s\n…\n12 tiles, 3,456 full\n"
    assert re.fullmatch(like(shown, numbers=True), "took 2 s\n1\n2\n7 tiles, 1 full\n")
    assert re.fullmatch(like(shown, numbers=False), "took 1.5e-08 s\n12 tiles, 3,456 full\n")
    assert not re.fullmatch(like(shown, numbers=False), "took 2 s\n12 tiles, 3,456 full\n")
    assert not re.fullmatch(like(shown, numbers=True), "took 2 s\n7 parts, 1 full\n")


def test_words_are_read() -> None:
    assert read_words(shlex.split('compile streaming -p window=4 -o out --gpu "NVIDIA H200" -n 64'))
    assert read_words(["cache", "prune", "--to", "500M"])
    with pytest.raises(Exception, match="--nope"):
        read_words(["bench", "streaming", "--nope"])
    with pytest.raises(KeyError):
        read_words(["benchmark", "streaming"])
