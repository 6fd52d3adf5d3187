"""Frames of the frozen encoders, computed ahead of training for `data.encoder_cache`, and what they depend on."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from salmonn_jax import config as configuration
from salmonn_jax import sharding, weights
from salmonn_jax.batch import FramesShape
from salmonn_jax.config import ModelConfig, Recipe
from salmonn_jax.errors import UserError
from salmonn_jax.models.parameters import ModelStructure, Params

# Raised when a change of the code gives frames other values than rounding does. `tests/training/test_encoder_frames.py`
# compares frames with recorded ones.
FRAMES_VERSION = 1
WINDOWS_PER_DEVICE = 8


def stored_frames_shape(model: ModelConfig, recipe: Recipe) -> FramesShape:
    """Returns the shape and dtype of the stored frames of a clip, padded to an encoder window."""
    dtype = jnp.dtype(recipe.data.encoder_cache_dtype or recipe.activation_dtype)
    return FramesShape(model.audio.num_frames, model.encoder_hidden_size, dtype)


class EncodedWindows(NamedTuple):
    """Result of the encoders for a batch of windows."""

    frames: jax.Array  # [clips, frames, hidden], see `Salmonn.join_frames`
    storable: jax.Array  # bool[clips]: whether all frames that exist are finite and not zero in the stored dtype


class FrameEncoder:
    """Encoders of a run on the devices of this process, independent of other processes.

    Each device holds all weights of the encoders and encodes `WINDOWS_PER_DEVICE` windows at a time.

    Args:
      structure: structure of the model.
      params: the frozen parameters of the run, on `mesh`. Every process passes its own shards.
      recipe: recipe of the run.
      mesh: device mesh of the run.

    Attributes:
      batch_size: number of windows of a call of `encode`.
      description: JSON values of what the frames depend on, besides the samples of a window.
    """

    def __init__(self, structure: ModelStructure, params: Params, recipe: Recipe, mesh: Mesh):
        model, paths = structure.config, structure.encoder_paths
        devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
        local_mesh = Mesh(np.asarray(devices), ("clips",), axis_types=(jax.sharding.AxisType.Auto,))
        self._params = _copy_to_each_device({path: params[path] for path in sorted(paths)}, mesh, local_mesh)
        self.batch_size = WINDOWS_PER_DEVICE * len(devices)
        shape = stored_frames_shape(model, recipe)
        structure = structure.without(structure.shapes.keys() - paths)

        def encode(params: Params, pcm: jax.Array, pcm_length: jax.Array) -> EncodedWindows:
            module = structure.merge(params)
            outputs = module.run_encoders(pcm, pcm_length)
            stored = module.join_frames(outputs).astype(shape.dtype)
            storable = jnp.isfinite(stored).all(axis=(1, 2))
            for name, found in module.split_frames(stored).items():
                _, exists = outputs[name]
                exists = jnp.ones_like(found.exists) if exists is None else exists[:, : model.audio.num_frames]
                storable &= (found.exists[:, : exists.shape[1]] | ~exists).all(axis=1)
            return EncodedWindows(stored, storable)

        replicated, split = (NamedSharding(local_mesh, spec) for spec in (PartitionSpec(), PartitionSpec("clips")))
        inputs = (
            jax.ShapeDtypeStruct((self.batch_size, model.audio.window_samples), jnp.int16, sharding=split),
            jax.ShapeDtypeStruct((self.batch_size,), jnp.int32, sharding=split),
        )
        self._encode = jax.jit(encode, in_shardings=(replicated, split, split), out_shardings=split)
        self._inputs, self._split, self._dtype = inputs, split, shape.dtype
        self.description = {
            "version": FRAMES_VERSION,
            "encoders": {name: configuration.to_dict(encoder) for name, encoder in model.encoders.items()},
            "weights": weights.fingerprint(self._params),
            "audio": {name: getattr(model.audio, name) for name in ("window_seconds", "minimum_seconds")},
            "frames": _describe_valid_frames(model),
            "activation_dtype": recipe.activation_dtype,
            "dtype": str(shape.dtype),
            "hidden_size": shape.hidden,
        }

    def compile(self) -> None:
        """Compiles the program of `encode`, so that the time of its first call is that of any other."""
        self._encode = self._encode.lower(self._params, *self._inputs).compile()

    def encode(self, windows: list[np.ndarray]) -> np.ndarray:
        """Returns the frames of encoder windows.

        Args:
          windows: int16[samples] each; at most `batch_size`, and no longer than an encoder window.

        Returns:
          float[windows, frames, hidden] in the dtype in which they are stored (see `Salmonn.join_frames`).

        Raises:
          UserError: the frames cannot be stored in this dtype.
        """
        pcm = np.zeros(self._inputs[0].shape, np.int16)
        pcm_length = np.zeros(self._inputs[1].shape, np.int32)
        for i, window in enumerate(windows):
            pcm[i, : len(window)], pcm_length[i] = window, len(window)
        encoded = self._encode(self._params, *jax.device_put((pcm, pcm_length), self._split))
        frames, storable = jax.device_get(encoded)
        if not storable[: len(windows)].all():
            raise UserError(
                f"encoder frames of a clip are not finite, or zero, as {self._dtype}; choose another "
                "data.encoder_cache_dtype, or leave data.encoder_cache out"
            )
        return frames[: len(windows)]


def _describe_valid_frames(model: ModelConfig) -> dict[str, Any]:
    """Returns what decides how many frames of a window are stored (see `ModelConfig.num_valid_frames`)."""
    if model.audio.tokens == "window" or not model.qformer:
        return {"of": "window"}
    return {"of": "clip", "window_frames": model.qformer.window_frames, "stride_frames": model.qformer.stride_frames}


def _copy_to_each_device(params: Params, mesh: Mesh, local_mesh: Mesh) -> Params:
    """Copies parameters that are split over the mesh of all processes to every device of this process."""
    gathered = jax.jit(lambda params: params, out_shardings=sharding.replicated(mesh))(params)
    on_each_device = NamedSharding(local_mesh, PartitionSpec())

    def to_local(x: jax.Array) -> jax.Array:
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        arrays = [shards[device] for device in local_mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(x.shape, on_each_device, arrays)

    return {path: to_local(x) for path, x in gathered.items()}
