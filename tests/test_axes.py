"""Tests of the array annotations: axis names are declared, and wrong shapes are refused in the tests."""

from __future__ import annotations

import ast
import pathlib
import re

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import salmonn_jax
from salmonn_jax.axes import AXES
from salmonn_jax.batch import empty_batch, make_batch

FOLDER = pathlib.Path(salmonn_jax.__file__).parent


def axis_names(path: pathlib.Path) -> set[str]:
    """Returns the axis names in the array annotations of a module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and re.match(r"\w+\[(Array|np\.ndarray), '", ast.unparse(node)):
            names |= set(re.findall(r"\b[a-z]\w*\b", node.slice.elts[1].value))
    return names


def test_axis_names_are_declared():
    """Every name in an annotation is declared, and every declared name is used, in an annotation or a comment."""
    sources = [path for path in FOLDER.rglob("*.py") if path.name != "axes.py"]
    assert set().union(*map(axis_names, sources)) <= set(AXES)
    text = "\n".join(path.read_text() for path in sources)
    assert all(re.search(rf"\[[^]]*\b{name}\b", text) for name in AXES)


def test_a_batch_of_arrays_that_do_not_go_together_is_refused():
    batch = empty_batch(2, 8, 1, 1600, 0)
    make_batch(*batch)
    with pytest.raises(TypeCheckError):
        make_batch(*batch._replace(positions=np.zeros((2, 9), np.int32)))
    with pytest.raises(TypeCheckError):
        make_batch(*batch._replace(pcm=np.zeros((1, 1600), np.float32)))
