"""Templates from the cache write the same kernels, and one that was changed is compiled anew."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from spdsl.cache.store import store
from spdsl.codegen.kept_templates import KeptTemplates

pytestmark = pytest.mark.usefixtures("cache")


def environment(text: str) -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.DictLoader({"a": text}), bytecode_cache=KeptTemplates(), autoescape=True)


def entries() -> list[str]:
    return list(store().keys())


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment("x = {{ x }}").get_template("a").render(x=1) == "x = 1"
    assert len(entries()) == 1
    monkeypatch.setattr(jinja2.Environment, "compile", None)
    assert environment("x = {{ x }}").get_template("a").render(x=2) == "x = 2"


def test_a_changed_template_is_compiled_anew() -> None:
    environment("x = {{ x }}").get_template("a")
    assert environment("y = {{ x }}").get_template("a").render(x=1) == "y = 1"
    assert len(entries()) == 2


def test_a_cache_that_cannot_be_used_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(tmp_path / "open"))
    assert environment("x = {{ x }}").get_template("a").render(x=1) == "x = 1"
