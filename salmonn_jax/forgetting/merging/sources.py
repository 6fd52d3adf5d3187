"""Readers of trained tensors and adapters, from model and run directories and from PEFT adapter directories."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from salmonn_jax import model_directory, weights
from salmonn_jax.config import ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.forgetting.merging.adapters import Adapter
from salmonn_jax.paths import Path, as_path, is_url, join
from salmonn_jax.weights import StoredParam

_LAYERS = "/layers/"
_WHOLE_BYTES = 256 << 20  # parameters up to this size are held in memory
LORA_A, LORA_B = "/lora_a", "/lora_b"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Unit:
    """Tensor or adapter that is merged on its own: one layer of a stacked parameter, or a whole parameter.

    Attributes:
      name: name with the layer, such as "llama/layers/3/q_proj" for an adapter.
      path: path of the parameter, without `/lora_a` for an adapter; for a PEFT directory, the name of the module.
      layer: index of the layer; None for a parameter outside layers.
      depth: position of the layer from 0, the first, to 1, the last; 0 outside layers.
      is_adapter: whether it is an adapter.
    """

    name: str
    path: str
    layer: int | None
    depth: float
    is_adapter: bool


class Source(Protocol):
    """Trained tensors and adapters of one model."""

    name: str

    @property
    def units(self) -> Mapping[str, Unit]:
        """Returns what is trained, by name."""

    def tensor(self, unit: Unit) -> np.ndarray:
        """Reads a tensor, float32."""

    def adapter(self, unit: Unit) -> Adapter:
        """Reads an adapter."""


class ModelSource:
    """A model or run directory. What is trained is its delta; a path that the delta lacks is read from the base."""

    def __init__(self, directory: Path, *, trained: bool = True):
        """Opens a directory.

        Args:
          directory: model or run directory, or a checkpoint in one.
          trained: whether its delta counts; False gives the model before any training.

        Raises:
          UserError: the directory is no model.
        """
        self.name = str(directory) if trained else f"base of {directory}"
        self.directory = directory
        self.files = model_directory.open_model(directory)
        self.base_params = weights.open_params(self.files.base.path)
        has_delta = trained and self.files.delta_path is not None
        self.delta = weights.open_params(self.files.delta_path) if has_delta else {}
        self.params: dict[str, StoredParam] = self.base_params | self.delta
        # A training checkpoint stores a parameter of all layers in one piece, which is then read once.
        self._read_whole = functools.lru_cache(maxsize=2)(lambda path: self.params[path].read())

    @property
    def config(self) -> ModelConfig:
        """Returns the configuration of the model."""
        return self.files.config

    @property
    def scale(self) -> float:
        """Returns the scale of the adapters."""
        return self.config.lora.alpha / self.config.lora.rank

    @property
    def units(self) -> dict[str, Unit]:
        """Returns what is trained, by name."""
        return self.units_of(self.delta)

    def units_of(self, paths: Iterable[str]) -> dict[str, Unit]:
        """Returns the units of parameters of this model, by name."""
        return {unit.name: unit for path in sorted(paths) for unit in _units(path, self.params[path].shape)}

    def tensor(self, unit: Unit) -> np.ndarray:
        """Reads a tensor, float32."""
        return self.read(unit.path, unit.layer).astype(np.float32)

    def read(self, path: str, layer: int | None) -> np.ndarray:
        """Reads one layer of a parameter, or the whole parameter if `layer` is None."""
        param = self.params[path]
        if layer is None or math.prod(param.shape) * param.dtype.itemsize > _WHOLE_BYTES:
            return param.read(layer)
        return self._read_whole(path)[layer]

    def adapter(self, unit: Unit) -> Adapter:
        """Reads an adapter."""
        a, b = (self.read(unit.path + suffix, unit.layer).astype(np.float32) for suffix in (LORA_A, LORA_B))
        return Adapter(a, b, self.scale)


def _units(path: str, shape: tuple[int, ...]) -> Iterator[Unit]:
    """Yields the units of a parameter. `lora_b` belongs to the unit of `lora_a`."""
    if path.endswith(LORA_B):
        return
    is_adapter = path.endswith(LORA_A)
    path = path.removesuffix(LORA_A)
    if _LAYERS not in path:
        yield Unit(path, path, None, 0.0, is_adapter)
        return
    before, after = path.split(_LAYERS, 1)
    for layer in range(shape[0]):
        name = f"{before}{_LAYERS}{layer}/{after}"
        yield Unit(name, path, layer, layer / max(1, shape[0] - 1), is_adapter)


class PeftSource:
    """A PEFT adapter directory with plain LoRA."""

    def __init__(self, directory: Path, names: Mapping[str, Unit] | None = None):
        """Opens a directory.

        Args:
          directory: directory with adapter_config.json and adapter_model.safetensors.
          names: units of a model of this library by the name of their module in PEFT; None keeps PEFT's names.

        Raises:
          UserError: a file is missing, the adapter is a variant of LoRA that would be merged wrongly, or a module is
            not in `names`.
        """
        from salmonn_jax.conversion.formats import tensors

        if is_url(directory):
            raise UserError(f"{directory}: a PEFT adapter is read from a local disk; copy it there first")
        self.name = str(directory)
        self.config = _peft_config(directory)
        self._tensors = tensors.open_state_dict(directory / PEFT_WEIGHTS)
        modules: dict[str, set[str]] = {}
        for key in self._tensors:
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
            if match is None:
                raise UserError(f"{directory} has the tensor {key}, which is not one of a plain LoRA adapter")
            modules.setdefault(match[1], set()).add(match[2])
        halves = [module for module, letters in modules.items() if len(letters) == 1]
        if halves or not modules:
            raise UserError(f"{directory} has no adapters, or one without its other half: {' '.join(halves[:1])}")
        if names is not None and set(modules) - set(names):
            raise UserError(f"{directory} has an adapter of {min(set(modules) - set(names))}, which base_model has not")
        layers = [int(n) for module in modules for n in re.findall(r"\.layers\.(\d+)\.", module)]
        last = max([1, *layers])
        self._modules, self.units = {}, {}
        for module in sorted(modules, key=_natural):
            layer = re.search(r"\.layers\.(\d+)\.", module)
            depth = int(layer[1]) / last if layer else 0.0
            unit = Unit(module, module, None, depth, True) if names is None else names[module]
            self.units[unit.name], self._modules[unit.name] = unit, module

    def tensor(self, unit: Unit) -> np.ndarray:
        """Raises an error: a PEFT directory has adapters only."""
        raise AssertionError(f"{self.name} has no tensor {unit.name}")

    def adapter(self, unit: Unit) -> Adapter:
        """Reads an adapter."""
        module = self._modules[unit.name]
        a, b = (
            np.asarray(self._tensors[f"base_model.model.{module}.lora_{letter}.weight"].read(), np.float32).T
            for letter in "AB"
        )
        rank = _of_module(self.config, "rank_pattern", module, self.config["r"])
        if a.shape[1] != rank or b.shape[0] != rank:
            raise UserError(f"{self.name} has rank {a.shape[1]} at {module}, and its adapter_config.json says {rank}")
        alpha = _of_module(self.config, "alpha_pattern", module, self.config["lora_alpha"])
        return Adapter(a, b, alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))


def _natural(text: str) -> list[Any]:
    """Returns a sort key in which layer 10 comes after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _of_module(config: Mapping[str, Any], key: str, module: str, default: float) -> float:
    """Returns the value of a module in `rank_pattern` or `alpha_pattern`, whose keys are ends of names, as in PEFT."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


# Keys of adapter_config.json that do not change what the stored tensors mean.
_HARMLESS = {
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "use_rslora", "layers_to_transform", "layers_pattern", "eva_config", "loftq_config", "runtime_config",
    "ensure_weight_tying",
}  # fmt: skip


def _peft_config(directory: Path) -> dict[str, Any]:
    """Reads adapter_config.json. Raises UserError if the adapter is not plain LoRA on an unchanged base."""
    try:
        config = json.loads((directory / PEFT_CONFIG).read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{directory / PEFT_CONFIG} is not JSON: {error}") from None
    if config.get("peft_type") != "LORA":
        raise UserError(f"{directory} is a PEFT adapter of type {config.get('peft_type')}; only LORA can be merged")
    unchanged = {"bias": "none", "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")}
    for key, value in config.items():
        harmless = key in _HARMLESS or not value or value == unchanged.get(key)
        if not harmless and not (isinstance(unchanged.get(key), tuple) and value in unchanged[key]):
            raise UserError(f"{directory} has {key}={value!r}: this variant of LoRA cannot be merged; use plain LoRA")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise UserError(f"{directory / PEFT_CONFIG} has {key}={config.get(key)!r}: must be a number above 0")
    return config


def is_peft(directory: Path) -> bool:
    """Returns whether a directory is a PEFT adapter."""
    return (directory / PEFT_CONFIG).is_file()


def peft_names(model: ModelSource) -> dict[str, Unit]:
    """Returns the adapters of a model by the names of their modules in PEFT."""
    from salmonn_jax.conversion import mapping, tables

    shapes = {path: x.shape for path, x in model.params.items() if path.endswith((LORA_A, LORA_B))}
    by_name = {}
    for name, place in mapping.destinations(tables.PEFT, shapes).items():
        if place.path.endswith(LORA_A):
            units = list(_units(place.path, shapes[place.path]))
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            by_name[module] = units[place.layer or 0]
    return by_name


def open_source(directory: str, relative_to: Path) -> tuple[Path, bool]:
    """Returns the path of a model of a recipe and whether it is a PEFT adapter.

    Raises:
      UserError: there is no such directory.
    """
    path = join(relative_to, directory)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give a model, a run, a checkpoint of a run or a PEFT adapter")
    return as_path(path), is_peft(path)
