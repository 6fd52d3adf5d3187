"""Ahead-of-time compilation of the train step and the decoding programs for TPU slices, used by `launch.plan`.

The results are the memory that each program needs on a chip and its collectives. The TPU compiler comes with
`pip install 'salmonn-jax[tpu]'` and runs on any machine. The compiled functions are those of training and decoding;
their inputs are shapes with shardings, from `abstract_weights` and `abstract_batch`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from salmonn_jax import sharding
from salmonn_jax.batch import NO_FRAMES, Batch, FramesShape, empty_batch
from salmonn_jax.config import DataConfig, GenerationConfig, ModelConfig
from salmonn_jax.decoding import decoder, memory
from salmonn_jax.decoding.batching import MAX_BATCH_SIZE
from salmonn_jax.decoding.options import decoding_options
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import ModelStructure
from salmonn_jax.planning import hlo
from salmonn_jax.planning.hlo import Collective
from salmonn_jax.planning.topologies import Topology

PROMPT_TOKENS = 256  # padded length of the prompts of the decoding programs
GENERATION = GenerationConfig(num_beams=4, max_new_tokens=200)  # settings of the decoding programs


class CompilationError(UserError):
    """TPU compiler error that is not an out-of-memory error."""


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """Compiled program. All sizes are bytes on one chip.

    Attributes:
      name: "train step", "prefill" (with the encoders) or "decode step".
      frozen: frozen parameters.
      trained: trainable parameters.
      optimizer: optimizer state.
      batch: batch; for a decode step also the key-value cache.
      temporary: activations, other temporary buffers and code; None if the program does not fit.
      needed: peak memory according to the compiler.
      collectives: collective instructions of the program.
      lower_seconds: seconds of lowering on this machine.
      compile_seconds: seconds of compilation on this machine.
      rows: prompts of a decoding program; 0 for a train step.
      hlo_text: text of the optimised HLO module.
    """

    name: str
    frozen: int
    trained: int
    optimizer: int
    batch: int
    temporary: int | None
    needed: int
    collectives: tuple[Collective, ...]
    lower_seconds: float
    compile_seconds: float
    rows: int = 0
    hlo_text: str = dataclasses.field(repr=False, default="")


def devices(topology: Topology) -> list[jax.Device]:
    """Returns devices to compile for. Raises UserError if the TPU compiler is not installed."""
    # These variables stop libtpu from looking for a TPU machine and from locking it against other processes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Without these, libtpu prints that it cannot determine them. The topology below does not depend on them.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    from jax.experimental import topologies

    slice_options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        topology_desc = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{topology.chip.kind}:{topology.grid}",
            chip_config_name=topology.chip.chip_config_name,
            **slice_options,
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"no TPU compiler for {topology.name} ({reason}): pip install 'salmonn-jax[tpu]'") from None
    return list(topology_desc.devices)


class AbstractWeights(NamedTuple):
    """Shapes, dtypes and shardings of the trainable and of the frozen parameters, by path."""

    trained: dict[str, jax.ShapeDtypeStruct]
    frozen: dict[str, jax.ShapeDtypeStruct]


def abstract_weights(
    structure: ModelStructure, trainable: Iterable[str], frozen_dtype: str, mesh: Mesh
) -> AbstractWeights:
    """Returns the abstract weights of a training run.

    Args:
      structure: structure of the model.
      trainable: modules and patterns, see `Recipe.trainable`.
      frozen_dtype: dtype of frozen parameters.
      mesh: mesh of the devices to compile for.
    """
    trainable_set = frozenset(parameters.trainable_paths(structure.shapes, trainable))
    placement = sharding.Placement(mesh, frozen_dtype, trainable_set)
    params = {path: placement(path, leaf) for path, leaf in structure.shapes.items()}
    return AbstractWeights(
        {path: x for path, x in params.items() if path in trainable_set},
        {path: x for path, x in params.items() if path not in trainable_set},
    )


def abstract_batch(model: ModelConfig, data: DataConfig, mesh: Mesh, frames_shape: FramesShape = NO_FRAMES) -> Batch:
    """Returns shapes, dtypes and shardings of a training batch.

    Args:
      model: configuration of the model.
      data: shape of the batch.
      mesh: mesh of the devices to compile for.
      frames_shape: encoder frames of a clip, in a run with `data.encoder_cache`.

    Raises:
      UserError: the batch cannot be split over the mesh.
    """
    num_shards = sharding.num_data_shards(mesh)
    sharding.check_batch(data, mesh)
    # Only the part of one data shard is allocated. A batch for a whole slice may not fit in the memory of this machine.
    part = empty_batch(
        num_rows=data.rows // num_shards,
        seq_len=data.seq_len,
        num_clips=data.clips // num_shards,
        window_samples=model.audio.window_samples,
        transcript_len=data.max_transcript_tokens,
        frames_shape=frames_shape,
    )
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct((num_shards * x.shape[0], *x.shape[1:]), x.dtype, sharding=s),
        part,
        sharding.batch_shardings(mesh, data.clips),
    )


def compile_train_step(
    train_step: Callable, state: Any, frozen: Any, batch: Batch, hbm_limit: float = math.inf
) -> CompiledProgram:
    """Compiles a train step.

    Args:
      train_step: the jitted step, from `salmonn_jax.training.step.make_train_step`.
      state: shapes, dtypes and shardings of the training state.
      frozen: abstract frozen parameters.
      batch: abstract batch.
      hbm_limit: bytes of one chip. A step whose inputs alone need more is not compiled; its `temporary` is None.

    Raises:
      CompilationError: the compiler failed.
    """
    inputs_by_kind = {"frozen": frozen, "trained": state.trainable, "optimizer": state.opt_state, "batch": batch}
    return _compile("train step", train_step, (state, frozen, batch), inputs_by_kind, hbm_limit)


def decoding_rows(structure: ModelStructure, weights: AbstractWeights, mesh: Mesh, hbm_limit: float) -> int:
    """Returns the estimate of the largest batch size of decoding that fits, at least one row per data shard.

    Args:
      structure: structure of the model.
      weights: its abstract weights.
      mesh: mesh of the devices to compile for.
      hbm_limit: bytes of one chip.
    """
    model = structure.merge(weights.trained, weights.frozen)
    sizes = {"seq_len": PROMPT_TOKENS, "max_rows_per_shard": MAX_BATCH_SIZE, "mesh": mesh, "limit": int(hbm_limit)}
    try:
        return memory.fitting_batch_size(model, GENERATION, **sizes)
    except UserError:
        return sharding.num_data_shards(mesh)


def compile_decoding(
    structure: ModelStructure, weights: AbstractWeights, rows: int, mesh: Mesh
) -> tuple[CompiledProgram, CompiledProgram]:
    """Compiles the prefill and the decode step of an evaluation, for prompts with one clip each.

    The search has four beams and at most 200 new tokens, as in the paper's evaluation.

    Args:
      structure: structure of the model.
      weights: its abstract weights.
      rows: number of prompts.
      mesh: mesh of the devices to compile for.

    Raises:
      CompilationError: the compiler failed.
    """
    trained, frozen = weights
    config, row_sharding = structure.config, sharding.row_sharding(mesh)
    # Presets name no stop tokens. Which ones they are does not change the memory or the speed.
    options, numbers = decoding_options(
        GENERATION,
        stop_token_ids=config.stop_token_ids or (2,),
        start_token_id=None,
        lora_scale=config.lora.scale,
        pad_classes=config.pad_classes,
    )
    numbers = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), numbers
    )
    batch = abstract_batch(config, DataConfig(rows=rows, clips=rows, streams=rows, lookahead=rows), mesh)

    def row_array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=row_sharding)

    prompts = decoder.PromptBatch(
        batch.pcm,
        batch.pcm_length,
        row_array(PROMPT_TOKENS),
        row_array(PROMPT_TOKENS),
        row_array(),
        row_array(2, dtype=jnp.uint32),
    )
    static = {"options": options, "mesh": mesh}

    def prefill(trained, frozen, prompts, numbers):
        model = structure.merge(trained, frozen)
        embedded = decoder.embed_prompts(model, prompts)
        return embedded, decoder.prefill(model.llama, embedded, numbers, **static)

    def decode_step(trained, frozen, embedded, state, numbers):
        return decoder.decode_step(structure.merge(trained, frozen).llama, embedded, state, numbers, **static)

    shapes = jax.eval_shape(prefill, trained, frozen, prompts, numbers)
    shardings = (
        jax.tree.map(lambda _: row_sharding, shapes[0]),
        decoder.state_shardings(shapes[1], mesh),
    )
    embedded, state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    inputs_by_kind = {"frozen": frozen, "trained": trained, "optimizer": (), "batch": prompts}
    programs = (
        _compile(
            "prefill", jax.jit(prefill, out_shardings=shardings), (trained, frozen, prompts, numbers), inputs_by_kind
        ),
        _compile(
            "decode step",
            jax.jit(decode_step, out_shardings=shardings[1], donate_argnums=3),
            (trained, frozen, embedded, state, numbers),
            inputs_by_kind | {"batch": (embedded, state)},
        ),
    )
    return tuple(dataclasses.replace(program, rows=rows) for program in programs)


def _compile(
    name: str, function: Any, arguments: tuple, inputs_by_kind: dict[str, Any], hbm_limit: float = math.inf
) -> CompiledProgram:
    """Compiles a jitted function, unless its inputs alone exceed `hbm_limit`."""
    input_bytes = {kind: _bytes_per_device(tree) for kind, tree in inputs_by_kind.items()}
    if sum(input_bytes.values()) > hbm_limit:
        not_compiled = {"temporary": None, "collectives": (), "lower_seconds": 0.0, "compile_seconds": 0.0}
        return CompiledProgram(name, **input_bytes, needed=sum(input_bytes.values()), **not_compiled)
    start = time.monotonic()
    lowered = function.lower(*arguments)
    lowered_time = time.monotonic()
    lower_seconds = lowered_time - start
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = re.search(r"Used ([\d.]+)([GM]) of", str(error))
        if out_of_memory is None:
            raise CompilationError(
                f"the TPU compiler failed on the {name}: {str(error).splitlines()[0][:200]}"
            ) from None
        return CompiledProgram(
            name,
            **input_bytes,
            temporary=None,
            needed=round(float(out_of_memory[1]) * 2 ** {"G": 30, "M": 20}[out_of_memory[2]]),
            collectives=(),
            lower_seconds=lower_seconds,
            compile_seconds=time.monotonic() - lowered_time,
        )
    compile_seconds = time.monotonic() - lowered_time
    stats, text = compiled.memory_analysis(), compiled.as_text()
    temporary = stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    needed = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes + temporary
    return CompiledProgram(
        name,
        **input_bytes,
        temporary=temporary,
        needed=needed,
        collectives=tuple(hlo.collectives(text)),
        lower_seconds=lower_seconds,
        compile_seconds=compile_seconds,
        hlo_text=text,
    )


def _bytes_per_device(tree: Any) -> int:
    """Returns the bytes of the shards of these arrays on one chip."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
