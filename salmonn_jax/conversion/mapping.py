"""One engine for every conversion: a table of rules, checked both ways before anything is read.

A rule says which tensor of theirs is which parameter of ours and how one becomes the other. `{layer}` in their name
stands for the place on the leading axis of ours. Nothing is guessed: every tensor of theirs has one destination or a
reason why it is ignored, every parameter of ours has one source, and all that does not fit is told at once.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from salmonn_jax.conversion.tensors import LazyStateDict, LazyTensor, summarize_by_layer
from salmonn_jax.errors import UserError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How one layout becomes the other. Exact: only axes and shapes change, never a value."""

    to_jax: Callable[[np.ndarray, Shape], np.ndarray]  # (theirs, our shape)
    to_torch: Callable[[np.ndarray], np.ndarray]

    def torch_shape(self, jax_shape: Shape) -> Shape:
        """Their shape, of ours."""
        return self.to_torch(np.broadcast_to(np.zeros((), np.bool_), jax_shape)).shape


IDENTITY = Transform(lambda x, shape: x, lambda x: x)
LINEAR_KERNEL = Transform(lambda x, shape: x.T, lambda x: x.T)
CONV1D_KERNEL = Transform(lambda x, shape: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0))
SQUEEZE_FIRST_AXIS = Transform(lambda x, shape: x[0], lambda x: x[None])


def reshape(to_torch_shape: Callable[[Shape], Shape]) -> Transform:
    """Another shape of the same order; `there` gives theirs, of ours."""
    return Transform(lambda x, shape: x.reshape(shape), lambda x: x.reshape(to_torch_shape(x.shape)))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Their tensor, our parameter, and how."""

    torch_name: str
    path: str
    transform: Transform = IDENTITY


@dataclasses.dataclass(frozen=True)
class Table:
    """All rules of one kind of checkpoint.

    Attributes:
      kind: what it is called in messages.
      rules: of which those whose parameter the model has are used.
      ignored: (regular expression on whole names, why such a tensor is not needed).
      part: how the paths of its parameters begin, where it is of one part of a model.
    """

    kind: str
    rules: tuple[Rule, ...]
    ignored_patterns: tuple[tuple[str, str], ...] = ()
    path_prefix: str = ""

    def ignore_reason(self, name: str) -> str | None:
        """Why their tensor is ignored; None if it is not."""
        return next((why for pattern, why in self.ignored_patterns if re.fullmatch(pattern, name)), None)


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where a tensor of theirs goes."""

    path: str
    layer: int | None
    transform: Transform
    torch_shape: Shape  # theirs


@dataclasses.dataclass(frozen=True)
class LazyParam:
    """A parameter of ours, made of tensors of theirs as it is read: never whole in memory if it is stacked."""

    path: str
    shape: Shape
    dtype: np.dtype
    sources: tuple[tuple[int | None, Transform, LazyTensor], ...]

    @property
    def stacked(self) -> bool:
        """Whether the leading axis is layers, each a tensor of theirs."""
        return self.sources[0][0] is not None

    def pieces(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields (layer or None, array) in the order of memory."""
        for layer, how, tensor in self.sources:
            shape = self.shape if layer is None else self.shape[1:]
            yield layer, np.ascontiguousarray(how.to_jax(tensor.read(), shape).astype(self.dtype, copy=False))


def destinations(table: Table, shapes: Mapping[str, Shape]) -> dict[str, Destination]:
    """Where each tensor of a checkpoint of this kind goes, for a model with parameters of these shapes.

    Raises:
      ValueError: two rules for one parameter or one tensor, or a parameter without a rule: a fault of the table.
    """
    found: dict[str, Destination] = {}
    used: list[str] = []
    for rule in table.rules:
        if rule.path not in shapes:
            continue
        used.append(rule.path)
        shape = shapes[rule.path]
        layered = "{layer}" in rule.torch_name
        there = rule.transform.torch_shape(shape[1:] if layered else shape)
        for layer in range(shape[0]) if layered else (None,):
            name = rule.torch_name.replace("{layer}", str(layer))
            if name in found:
                raise ValueError(f"{table.kind}: two rules for {name}")
            found[name] = Destination(rule.path, layer, rule.transform, there)
    if len(used) != len(set(used)) or set(used) != set(shapes):
        raise ValueError(f"{table.kind}: not one rule each for {sorted(set(used) ^ set(shapes)) or used}")
    return found


def match_checkpoint(
    table: Table, shapes: Mapping[str, Shape], tensors: LazyStateDict
) -> tuple[dict[str, LazyParam], list[str]]:
    """Pairs a checkpoint with the parameters of a model; reads nothing yet.

    Returns:
      The parameters by path, and all that does not fit: tensors that are missing, unknown, or of another shape.
    """
    wanted = destinations(table, shapes)
    wrong = [f"missing {name}" for name in wanted if name not in tensors]
    for name, tensor in tensors.items():
        if name not in wanted:
            if table.ignore_reason(name) is None:
                wrong.append(f"unknown {name} {list(tensor.shape)}")
        elif tensor.shape != wanted[name].torch_shape:
            wrong.append(f"{name} has shape {list(tensor.shape)}, not {list(wanted[name].torch_shape)}")
    if wrong:
        return {}, [f"this is not the {table.kind} its configuration describes: {summarize_by_layer(wrong)}"]
    parts: dict[str, list] = {path: [] for path in shapes}
    for name, to in wanted.items():
        parts[to.path].append((to.layer, to.transform, tensors[name]))
    return {path: LazyParam(path, shapes[path], _common_dtype(of), tuple(of)) for path, of in parts.items()}, []


def match_checkpoints(*checkpoints: tuple[Table, Mapping[str, Shape], LazyStateDict]) -> dict[str, LazyParam]:
    """Pairs checkpoints with the parameters of a model. Raises UserError with all that does not fit, of all of them."""
    found, wrong = {}, []
    for table, shapes, tensors in checkpoints:
        parameters, faults = match_checkpoint(table, shapes, tensors)
        found |= parameters
        wrong += faults
    if wrong:
        raise UserError("; ".join(wrong))
    return found


def ignored_tensors(table: Table, tensors: LazyStateDict) -> dict[str, str]:
    """The names of their tensors that are not needed, with the reasons."""
    return {name: why for name in tensors if (why := table.ignore_reason(name)) is not None}


def _common_dtype(parts: list) -> np.dtype:
    """The dtype of a parameter: that of its parts, or one that holds all of theirs."""
    dtypes = {tensor.dtype for _, _, tensor in parts}
    halves = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}
    if halves <= dtypes:  # neither holds the other
        dtypes = dtypes - halves | {np.dtype(np.float32)}
    return functools.reduce(np.promote_types, dtypes)
