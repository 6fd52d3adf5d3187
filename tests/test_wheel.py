"""Tests of the wheel: it holds every file that the commands need. The wheel is unpacked away from the repository."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGES = ("salmonn_jax", "data_pipelines", "launch")
VERBS = (
    *(
        "train",
        "convert",
        "generate",
        "evaluate",
        "score",
        "report",
        "prepare",
        "plan",
        "submit",
        "merge",
        "forgetting",
    ),
    *("quickstart", "real_parts", "plan_table"),
)
SHOW_HELP = """
import runpy, sys
for verb in {verbs}:
    sys.argv = [verb, "--help"]
    try:
        runpy.run_module("launch." + verb, run_name="__main__")
    except SystemExit as stopped:
        assert not stopped.code, verb
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> pathlib.Path:
    """Returns the directory of the unpacked wheel, built from a copy of the packages."""
    build_meta = pytest.importorskip("setuptools.build_meta")
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    code = f"import setuptools.build_meta as b; b.build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    assert build_meta
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(wheels / "unpacked")
    return wheels / "unpacked"


def run_python(unpacked: pathlib.Path, folder: pathlib.Path, *arguments: str) -> str:
    """Runs Python in `folder` with the packages of the wheel, and returns what it prints."""
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_file_of_the_packages_is_in_the_wheel(unpacked):
    ours = {
        path.relative_to(REPOSITORY)
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in ours if not (unpacked / path).is_file()} == set()
    assert all((unpacked / package / "py.typed").is_file() for package in PACKAGES)


def test_every_verb_shows_its_help(unpacked, tmp_path):
    modules = {path.stem for path in (REPOSITORY / "launch").glob("*.py") if "cli.run(main)" in path.read_text()}
    assert modules == set(VERBS)
    printed = run_python(unpacked, tmp_path, "-c", SHOW_HELP.format(verbs=VERBS))
    assert printed.count("usage: python -m launch.") == len(VERBS)
    found = run_python(unpacked, tmp_path, "-c", "import salmonn_jax; print(salmonn_jax.__file__)")
    assert found.strip() == str(unpacked / "salmonn_jax" / "__init__.py")


@pytest.mark.slow
def test_debug_is_trained_from_the_wheel(unpacked, tmp_path):
    run_python(unpacked, tmp_path, "-m", "launch.train", "debug", "--output", "run", "num_train_steps=2")
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_public_names():
    import salmonn_jax

    assert all(getattr(salmonn_jax, name).__name__ == name for name in salmonn_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = salmonn_jax.lod
