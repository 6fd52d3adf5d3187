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
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
            axes = node.slice.elts[1]
            if isinstance(axes, ast.Constant) and isinstance(axes.value, str) and "Array" in ast.unparse(node):
                names |= set(re.findall(r"\b[a-z_]+\b", re.sub(r"\{.*?\}", "", axes.value)))
            elif isinstance(axes, ast.Constant) and isinstance(axes.value, str) and "ndarray" in ast.unparse(node):
                names |= set(re.findall(r"\b[a-z_]+\b", axes.value))
    return names


def test_axis_names_are_declared():
    used = set().union(*map(axis_names, FOLDER.rglob("*.py")))
    assert used == set(AXES)


def test_a_batch_of_arrays_that_do_not_go_together_is_refused():
    batch = empty_batch(2, 8, 1, 1600, 0)
    make_batch(*batch)
    with pytest.raises(TypeCheckError):
        make_batch(*batch._replace(positions=np.zeros((2, 9), np.int32)))
    with pytest.raises(TypeCheckError):
        make_batch(*batch._replace(pcm=np.zeros((1, 1600), np.float32)))
