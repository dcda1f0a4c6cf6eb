"""Meanings, colours and the extension follow the grammar and the checker's tables."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import spdsl
from spdsl.editor import textmate
from spdsl.editor.extension import SOURCE, write_extension
from spdsl.editor.words import words
from spdsl.grammar.engine import tokens
from spdsl.semantics import meanings
from spdsl.semantics.clauses import SETTINGS
from spdsl.semantics.functions import FUNCTIONS
from spdsl.semantics.ops import OPS
from spdsl.semantics.scope import BUILTINS, TYPES, WORDS
from spdsl.semantics.unsupported import UNSUPPORTED_SETTINGS

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "patterns").glob("*.spat"))


def test_everything_has_a_meaning() -> None:
    assert meanings.NAMES.keys() == BUILTINS.keys()
    assert meanings.FUNCTIONS.keys() == FUNCTIONS.keys()
    assert meanings.TYPES.keys() == set(TYPES)
    grammar = (ROOT / "grammar" / "spat.lark").read_text()
    listed = re.findall(r"^\w+\.2: /\(?([a-z_|]+)\)?\\b/$", grammar, re.MULTILINE)
    written = {word for each in listed for word in each.split("|")}
    assert meanings.WORDS.keys() == written
    assert meanings.WORDS.keys() >= {*WORDS, *SETTINGS, *UNSUPPORTED_SETTINGS}
    signs = {op.symbol for op in OPS.values() if op.symbol} - {"and", "or", "not"}
    assert meanings.OPERATORS.keys() == signs | {"|>", "..", "="}


def test_meanings_lead_to_headings_of_the_language_page() -> None:
    page = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    tables = (meanings.NAMES, meanings.FUNCTIONS, meanings.OPERATORS, meanings.WORDS, meanings.TYPES, meanings.MEMBERS)
    for table in tables:
        for word, meaning in table.items():
            assert meaning.section in headings, word


def test_what_is_refused_says_so() -> None:
    refused = {word for word, meaning in meanings.WORDS.items() if meaning.text == meanings.REFUSED}
    assert refused == {*UNSUPPORTED_SETTINGS, "linear"}


def test_the_extension_has_the_colours_of_this_grammar() -> None:
    assert textmate.FILE.read_text(encoding="utf-8") == textmate.text(), "run `python -m spdsl.editor.textmate`"


def coloured(text: str) -> dict[tuple[int, int], str]:
    """Colours by place, as an editor finds them: at each place the first pattern that matches earliest."""
    found: dict[tuple[int, int], str] = {}
    at = 0
    patterns = [(re.compile(each["match"]), each) for each in textmate.grammar()["patterns"]]
    while at < len(text):
        matches = [(match, each) for regexp, each in patterns if (match := regexp.search(text, at)) and match.group()]
        if not matches:
            break
        match, each = min(matches, key=lambda pair: pair[0].start())
        for group, capture in each.get("captures", {"0": each}).items():
            found[match.span(int(group))] = capture["name"]
        at = match.end()
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_colours_agree_with_the_parser(path: Path) -> None:
    """Every word of the library is coloured as what the parser reads it for."""
    text = path.read_text(encoding="utf-8")
    colours = coloured(text)
    for token in words(text):
        if token.kind.removeprefix("_") in (
            "LPAR",
            "RPAR",
            "LSQB",
            "RSQB",
            "LBRACE",
            "RBRACE",
            "COMMA",
            "COLON",
            "DOT",
        ):
            continue
        colour = colours[token.start, token.end]
        if token.kind == "NAME":
            assert colour.startswith(("variable", "support", "entity", "constant.language")), token
        elif token.kind in ("NUMBER", "STRING"):
            assert colour.startswith("constant.numeric" if token.kind == "NUMBER" else "string"), token
        else:
            assert colour.startswith(("keyword", "storage")), token
    for token in tokens(text):
        if token.kind == "COMMENT":
            assert colours[token.start, token.end].startswith("comment")


def test_names_spelt_like_clauses_are_names() -> None:
    text = "pattern p(scale: int = 2) { let bias = q - k * scale keep bias > 0 bias 0.5 }"
    found = {(text[start:end], colour) for (start, end), colour in coloured(text).items()}
    assert {("scale", "variable.other.spat"), ("bias", "variable.other.spat"), ("bias", "keyword.other.spat")} <= found


def test_the_extension_is_written_whole(tmp_path: Path) -> None:
    names = write_extension(tmp_path / "new" / "spdsl")
    package = json.loads((tmp_path / "new" / "spdsl" / "package.json").read_text())
    assert package["version"] == spdsl.__version__
    assert {"package.json", package["main"].removeprefix("./")} <= set(names)
    for grammar in package["contributes"]["grammars"]:
        assert grammar["path"].removeprefix("./") in names
    for language in package["contributes"]["languages"]:
        assert json.loads((tmp_path / "new" / "spdsl" / language["configuration"]).read_text())


def test_the_program_of_the_extension(tmp_path: Path) -> None:
    """It starts the command of the setting, and says what to do where its library or the command is missing."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    (tmp_path / "node_modules" / "vscode").mkdir(parents=True)
    (tmp_path / "node_modules" / "vscode" / "index.js").write_text(
        "exports.said = [];\n"
        "const say = text => exports.said.push(text);\n"
        "exports.window = { showWarningMessage: say, showErrorMessage: say };\n"
        'exports.workspace = { getConfiguration: () => ({ get: () => ["spdsl", "lsp"] }),\n'
        "  createFileSystemWatcher: () => ({}) };\n"
        "exports.commands = { registerCommand: () => ({}) };\n"
    )
    shutil.copy(SOURCE / "extension.js", tmp_path)
    run = (
        'const e = require("./extension.js");'
        'e.activate({ subscriptions: [] }).then(() => console.log(JSON.stringify(require("vscode").said)))'
    )

    def said() -> list[str]:
        done = subprocess.run([node, "-e", run], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
        return list(json.loads(done.stdout))

    (missing,) = said()
    assert "npm install" in missing
    client = tmp_path / "node_modules" / "vscode-languageclient"
    client.mkdir()
    (client / "node.js").write_text(
        "exports.LanguageClient = class { constructor(id, name, server, options) { this.server = server; }\n"
        "  async start() { throw new Error(this.server.command + this.server.args); } };\n"
    )
    (failed,) = said()
    assert "`spdsl lsp` does not start (spdsllsp)" in failed
    assert 'pip install "spdsl[editor]"' in failed
