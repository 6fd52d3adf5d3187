"""Programs compiled for TPU slices that nobody here owns: what they need of a chip, and what they send between chips.

The TPU compiler comes with `pip install 'salmonn-jax[tpu]'` and runs on any machine. The programs are those of training
and decoding, unchanged; their inputs are shapes with shardings.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from salmonn_jax import hlo, sharding
from salmonn_jax.batch import Batch
from salmonn_jax.config import RunConfig
from salmonn_jax.decoding import greedy
from salmonn_jax.errors import UserError
from salmonn_jax.hlo import Collective
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import ModelStructure
from salmonn_jax.topologies import Topology
from salmonn_jax.training.step import init_train_state, make_train_step

PROMPT_TOKENS, MAX_NEW_TOKENS = 256, 200  # of the decoding programs


class CompilationError(UserError):
    """The compiler gave up on a program, and not because it is too large."""


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """One compiled program. All bytes are those of one chip.

    Attributes:
      frozen, trained, optimizer, batch: of its inputs; a decoding program's cache counts as batch.
      temporary: activations and whatever else lives only while it runs; None if it does not fit.
      needed: all of it at once, as the compiler lays it out.
      collectives: see `hlo.Collective`.
      lower_seconds, compile_seconds: on this machine.
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
    hlo_text: str = dataclasses.field(repr=False, default="")

    @property
    def sent(self) -> int:
        """Bytes that one execution hands to collectives."""
        return sum(c.bytes * c.times for c in self.collectives)


def devices(topology: Topology) -> list[jax.Device]:
    """The chips of a topology, to compile for. Raises UserError where the TPU compiler is not installed."""
    # Without these the compiler looks for the machine it would run on, and for other users of it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{topology.chip.kind}:{topology.grid}",
            chip_config_name=topology.chip.chip_config_name,
            **more,
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        why = str(error).splitlines()[0][:160]
        raise UserError(f"no TPU compiler for {topology.name} ({why}): pip install 'salmonn-jax[tpu]'") from None
    return list(described.devices)


def compile_train_step(config: RunConfig, mesh: Mesh, hbm_limit: float = math.inf) -> CompiledProgram:
    """The train step of a configuration; not compiled where its inputs alone take more than `memory` of a chip."""
    structure = parameters.model_structure(config.model)
    trained, frozen = _abstract_weights(config, structure, mesh)
    everywhere = sharding.replicated(mesh)
    state = jax.eval_shape(lambda params: init_train_state(config, params), trained)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
    batch = _abstract_batch(config, mesh)
    step = make_train_step(config, structure, mesh)
    kinds = {"frozen": frozen, "trained": state.trainable, "optimizer": state.opt_state, "batch": batch}
    return _compile("train step", step, (state, frozen, batch), kinds, hbm_limit)


def compile_decoding(config: RunConfig, mesh: Mesh) -> tuple[CompiledProgram, CompiledProgram]:
    """The two programs of decoding, for as many prompts as a step has rows, each with a clip of its own.

    Reading the prompts, and choosing one token of each.
    """
    structure = parameters.model_structure(config.model)
    trained, frozen = _abstract_weights(config, structure, mesh)
    options = {"eos_token_id": 2, "lora_scale": config.model.lora.scale}
    split = sharding.row_sharding(mesh)
    rows = config.data.rows
    batch = _abstract_batch(dataclasses.replace(config, data=dataclasses.replace(config.data, clips=rows)), mesh)

    def over_rows(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), jnp.int32, sharding=split)

    prompts = greedy.PromptBatch(
        batch.pcm, batch.pcm_length, over_rows(PROMPT_TOKENS), over_rows(PROMPT_TOKENS), over_rows()
    )

    def prefill(trained, frozen, prompts):
        model = structure.merge(trained, frozen)
        return greedy.prefill(model, prompts, max_new_tokens=MAX_NEW_TOKENS, **options)

    def decode_step(trained, frozen, prompts, state):
        return greedy.decode_step(structure.merge(trained, frozen), prompts, state, **options)

    state = jax.eval_shape(prefill, trained, frozen, prompts)
    places = _decoding_shardings(state, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places)
    kinds = {"frozen": frozen, "trained": trained, "optimizer": (), "batch": prompts}
    return (
        _compile("prefill", jax.jit(prefill, out_shardings=places), (trained, frozen, prompts), kinds),
        _compile(
            "decode step",
            jax.jit(decode_step, out_shardings=places, donate_argnums=3),
            (trained, frozen, prompts, state),
            kinds | {"batch": (prompts, state)},
        ),
    )


def _abstract_weights(config: RunConfig, structure: ModelStructure, mesh: Mesh) -> tuple[dict, dict]:
    chosen = frozenset(parameters.trainable_paths(structure.shapes, config.trainable))
    placement = sharding.Placement(mesh, config.model.frozen_dtype, chosen)
    placed = {path: placement(path, leaf) for path, leaf in structure.shapes.items()}
    return {p: x for p, x in placed.items() if p in chosen}, {p: x for p, x in placed.items() if p not in chosen}


def _abstract_batch(config: RunConfig, mesh: Mesh) -> Batch:
    data, array = config.data, jax.ShapeDtypeStruct
    sharding.check_batch(data, mesh)
    rows, sequence, clips = data.rows, data.seq_len, data.clips
    text, sound = (rows, sequence), (clips, config.model.audio.window_samples)
    batch = Batch(
        pcm=array(sound, jnp.int16),
        pcm_length=array((clips,), jnp.int32),
        tokens=array(text, jnp.int32),
        positions=array(text, jnp.int32),
        segments=array(text, jnp.int32),
        loss_mask=array(text, jnp.bool_),
        audio_slot=array(text, jnp.int32),
        source_index=array((rows,), jnp.int32),
        transcript=array((clips, data.max_transcript_tokens), jnp.int32),
    )
    places = sharding.batch_shardings(mesh, clips)
    return jax.tree.map(lambda x, place: array(x.shape, x.dtype, sharding=place), batch, places)


def _decoding_shardings(state: greedy.DecodeState, mesh: Mesh) -> greedy.DecodeState:
    """Rows over the data axes; heads of the cache over `tensor`, where it divides them."""
    heads = state.cache.keys.shape[3]
    cut = "tensor" if heads % mesh.shape["tensor"] == 0 else None
    cache = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, ("data", "fsdp"), None, cut))
    split, everywhere = sharding.row_sharding(mesh), sharding.replicated(mesh)
    return greedy.DecodeState(everywhere, split, split, split, split, type(state.cache)(cache, cache, everywhere))


def _compile(
    name: str, function: Any, arguments: tuple, inputs_by_kind: dict[str, Any], memory: float = math.inf
) -> CompiledProgram:
    held = {kind: _bytes_per_device(tree) for kind, tree in inputs_by_kind.items()}
    if sum(held.values()) > memory:
        nothing = {"temporary": None, "collectives": (), "lower_seconds": 0.0, "compile_seconds": 0.0}
        return CompiledProgram(name, **held, needed=sum(held.values()), **nothing)
    began = time.monotonic()
    lowered = function.lower(*arguments)
    lowered_at = time.monotonic()
    seconds = {"lower_seconds": lowered_at - began}
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"Used ([\d.]+)([GM]) of", str(error))
        if needed is None:
            raise CompilationError(
                f"the TPU compiler failed on the {name}: {str(error).splitlines()[0][:200]}"
            ) from None
        size = round(float(needed[1]) * 2 ** {"G": 30, "M": 20}[needed[2]])
        spent = time.monotonic() - lowered_at
        return CompiledProgram(
            name, **held, temporary=None, needed=size, collectives=(), compile_seconds=spent, **seconds
        )
    spent, memory, text = time.monotonic() - lowered_at, compiled.memory_analysis(), compiled.as_text()
    temporary = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + temporary
    return CompiledProgram(
        name,
        **held,
        temporary=temporary,
        needed=needed,
        collectives=tuple(hlo.collectives(text)),
        compile_seconds=spent,
        hlo_text=text,
        **seconds,
    )


def _bytes_per_device(tree: Any) -> int:
    """Bytes of the parts of these arrays that one chip holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )
