"""What an installation contains: built from the tree, and from the source archive."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("spdsl", "grammar", "codegen", "runtime", "patterns", "tests", "examples", "benchmarks")
FILES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build without a network: with the setuptools of the running environment."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tree, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(out.iterdir())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree as a clone has it, symbolic links and all."""
    copy = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in FILES:
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, copy / name)
    assert (copy / "spdsl" / "grammar").is_symlink()
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with zipfile.ZipFile(build("wheel", tree, tmp_path_factory.mktemp("wheel") / "out")) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def wheel_of_sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", tree, folder / "out")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked, folder / "wheel")) as archive:
        return sorted(archive.namelist())


def test_top_level_names(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"spdsl", next(top for top in tops if top.endswith(".dist-info"))}


def test_every_file_of_the_package_is_there(wheel: list[str]) -> None:
    wanted = {"spdsl/py.typed"}
    for folder in ("spdsl", "grammar", "codegen", "runtime", "patterns"):
        inside = "spdsl" if folder == "spdsl" else f"spdsl/{folder}"
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", "grammar", "codegen", "runtime", "patterns"} & set(
                path.relative_to(ROOT / folder).parts
            ):
                wanted.add(f"{inside}/{path.relative_to(ROOT / folder).as_posix()}")
    assert {"spdsl/grammar/spat.lark", "spdsl/patterns/streaming.spat", "spdsl/runtime/operator.py"} <= wanted
    present = {name for name in wheel if name.startswith("spdsl/")}
    assert present == wanted


def test_the_wheel_of_the_source_archive_is_the_same(wheel: list[str], wheel_of_sdist: list[str]) -> None:
    assert wheel_of_sdist == wheel


def test_the_licence_is_in_the_wheel(wheel: list[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
