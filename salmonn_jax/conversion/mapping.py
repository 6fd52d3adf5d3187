"""Mapping engine used by every conversion: a table of rules that is checked in both directions before tensors are read.

A rule pairs one torch tensor name with the path of one JAX parameter and with the transform between their layouts.
`{layer}` in a torch name stands for the index on the leading axis of the JAX parameter. The engine guesses nothing:
every torch tensor has one destination or a reason to be ignored, every JAX parameter has one source, and one error
lists all mismatches.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from salmonn_jax.conversion.formats.tensors import LazyStateDict, LazyTensor, summarize_by_layer
from salmonn_jax.errors import UserError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """Conversion between the torch and the JAX layout of an array. It changes axes and shapes, never values."""

    to_jax: Callable[[np.ndarray, Shape], np.ndarray]  # (torch array, JAX shape) -> JAX array
    to_torch: Callable[[np.ndarray], np.ndarray]

    def torch_shape(self, jax_shape: Shape) -> Shape:
        """Returns the torch shape of a parameter with this JAX shape."""
        return self.to_torch(np.broadcast_to(np.zeros((), np.bool_), jax_shape)).shape


IDENTITY = Transform(lambda x, shape: x, lambda x: x)
LINEAR_KERNEL = Transform(lambda x, shape: x.T, lambda x: x.T)
CONV1D_KERNEL = Transform(lambda x, shape: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0))
SQUEEZE_FIRST_AXIS = Transform(lambda x, shape: x[0], lambda x: x[None])


def reshape(to_torch_shape: Callable[[Shape], Shape]) -> Transform:
    """Returns a transform that reshapes in row-major order. `to_torch_shape` maps the JAX shape to the torch shape."""
    return Transform(lambda x, shape: x.reshape(shape), lambda x: x.reshape(to_torch_shape(x.shape)))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Pair of a torch tensor name and a JAX parameter path, with the transform between them."""

    torch_name: str
    path: str
    transform: Transform = IDENTITY


@dataclasses.dataclass(frozen=True)
class Table:
    """All rules for one kind of checkpoint.

    Attributes:
      kind: name of the kind in messages.
      rules: the engine uses those rules whose parameter the model has.
      ignored_patterns: pairs of (regular expression for whole tensor names, reason why such a tensor is not needed).
      path_prefix: common prefix of the parameter paths, if the checkpoint holds one component of a model.
      copies: triples of (regular expression for whole tensor names, name of the tensor whose values such a tensor must
        have, what to do if the values differ). Such a tensor is ignored, see `check_copies`.
    """

    kind: str
    rules: tuple[Rule, ...]
    ignored_patterns: tuple[tuple[str, str], ...] = ()
    path_prefix: str = ""
    copies: tuple[tuple[str, str, str], ...] = ()

    def ignore_reason(self, name: str) -> str | None:
        """Returns why the torch tensor `name` is ignored, or None if it is converted."""
        copies = [(pattern, f"a copy of {original}, as a conversion checks") for pattern, original, _ in self.copies]
        return next(
            (reason for pattern, reason in (*self.ignored_patterns, *copies) if re.fullmatch(pattern, name)), None
        )


@dataclasses.dataclass(frozen=True)
class Destination:
    """JAX parameter, or one layer of it, to which one torch tensor belongs."""

    path: str
    layer: int | None  # index on the leading axis; None if the parameter is not stacked
    transform: Transform
    torch_shape: Shape


@dataclasses.dataclass(frozen=True)
class LazyParam:
    """JAX parameter that is read from torch tensors piece by piece. A stacked parameter is never whole in memory."""

    path: str
    shape: Shape
    dtype: np.dtype
    sources: tuple[tuple[int | None, Transform, LazyTensor], ...]

    @property
    def stacked(self) -> bool:
        """Returns whether the leading axis indexes layers, each of which is one torch tensor."""
        return self.sources[0][0] is not None

    def pieces(self) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields (layer or None, array) in memory order."""
        for layer, transform, tensor in self.sources:
            shape = self.shape if layer is None else self.shape[1:]
            yield layer, np.ascontiguousarray(transform.to_jax(tensor.read(), shape).astype(self.dtype, copy=False))


def destinations(table: Table, shapes: Mapping[str, Shape]) -> dict[str, Destination]:
    """Returns the destination of each torch tensor, by name, in a model with parameters of these shapes.

    Raises:
      ValueError: the table is wrong: two rules name one parameter or one tensor, or a parameter has no rule.
    """
    destination_of: dict[str, Destination] = {}
    used_paths: list[str] = []
    for rule in table.rules:
        if rule.path not in shapes:
            continue
        used_paths.append(rule.path)
        shape = shapes[rule.path]
        stacked = "{layer}" in rule.torch_name
        torch_shape = rule.transform.torch_shape(shape[1:] if stacked else shape)
        for layer in range(shape[0]) if stacked else (None,):
            name = rule.torch_name.replace("{layer}", str(layer))
            if name in destination_of:
                raise ValueError(f"{table.kind}: two rules for {name}")
            destination_of[name] = Destination(rule.path, layer, rule.transform, torch_shape)
    if len(used_paths) != len(set(used_paths)) or set(used_paths) != set(shapes):
        wrong_paths = sorted(set(used_paths) ^ set(shapes)) or used_paths
        raise ValueError(f"{table.kind}: expected exactly one rule for each of {wrong_paths}")
    return destination_of


def match_checkpoint(
    table: Table, shapes: Mapping[str, Shape], tensors: LazyStateDict
) -> tuple[dict[str, LazyParam], list[str]]:
    """Matches the tensors of one checkpoint with the parameters of a model. Reads no tensor yet.

    Args:
      table: rules for this kind of checkpoint.
      shapes: JAX shape of each parameter, by path.
      tensors: tensors of the checkpoint, by torch name.

    Returns:
      The parameters by path, and a list of error messages about missing, unknown and wrong-shaped tensors. One of the
      two is empty.
    """
    expected = destinations(table, shapes)
    mismatches = [f"missing {name}" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            if table.ignore_reason(name) is None:
                mismatches.append(f"unknown {name} {list(tensor.shape)}")
        elif tensor.shape != expected[name].torch_shape:
            mismatches.append(f"{name} has shape {list(tensor.shape)}, not {list(expected[name].torch_shape)}")
    if mismatches:
        return {}, [f"this is not the {table.kind} its configuration describes: {summarize_by_layer(mismatches)}"]
    sources_of: dict[str, list] = {path: [] for path in shapes}
    for name, destination in expected.items():
        sources_of[destination.path].append((destination.layer, destination.transform, tensors[name]))
    params = {
        path: LazyParam(path, shapes[path], _common_dtype(sources), tuple(sources))
        for path, sources in sources_of.items()
    }
    return params, []


def match_checkpoints(*checkpoints: tuple[Table, Mapping[str, Shape], LazyStateDict]) -> dict[str, LazyParam]:
    """Matches several checkpoints with the parameters of one model. Reads no tensor yet.

    Args:
      *checkpoints: the arguments of `match_checkpoint` for each checkpoint.

    Raises:
      UserError: tensors are missing, unknown or wrong-shaped. The message covers all checkpoints.
    """
    params, errors = {}, []
    for table, shapes, tensors in checkpoints:
        checkpoint_params, checkpoint_errors = match_checkpoint(table, shapes, tensors)
        params |= checkpoint_params
        errors += checkpoint_errors
    if errors:
        raise UserError("; ".join(errors))
    return params


def check_copies(table: Table, tensors: LazyStateDict) -> None:
    """Compares the tensors that `table` declares to be copies with their originals, two tensors at a time.

    Raises:
      UserError: the values differ, so ignoring the tensor would change the model.
    """
    for pattern, original, fix in table.copies:
        for name in tensors:
            if not re.fullmatch(pattern, name) or original not in tensors:
                continue
            if not np.array_equal(tensors[name].read(), tensors[original].read()):
                raise UserError(f"{name} has other values than {original}, of which it should be a copy; {fix}")


def ignored_tensors(table: Table, tensors: LazyStateDict) -> dict[str, str]:
    """Returns the names of the tensors that a conversion ignores, each with the reason."""
    return {name: reason for name in tensors if (reason := table.ignore_reason(name)) is not None}


def summarize_ignored(ignored: Mapping[str, str]) -> list[str]:
    """Returns one line per reason: the number of ignored keys and one or two of them as examples.

    Args:
      ignored: reason why each key is ignored, as `ignored_tensors` returns it.
    """
    names_of: dict[str, list[str]] = {}
    for name, reason in ignored.items():
        names_of.setdefault(reason, []).append(name)
    lines = []
    for reason, names in names_of.items():
        examples = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
        lines.append(f"ignored {len(names)} {'key' if len(names) == 1 else 'keys'} ({examples}): {reason}")
    return lines


def _common_dtype(sources: list) -> np.dtype:
    """Returns the smallest dtype that holds the values of all source tensors of a parameter."""
    dtypes = {tensor.dtype for _, _, tensor in sources}
    half_dtypes = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}
    if half_dtypes <= dtypes:  # neither of the two can hold all values of the other
        dtypes = dtypes - half_dtypes | {np.dtype(np.float32)}
    return functools.reduce(np.promote_types, dtypes)
