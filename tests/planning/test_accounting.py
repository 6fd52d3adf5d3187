"""FLOPs by formula against those of the compiled step; bytes and collectives of compiled programs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch.plan import compile_train_step
from salmonn_jax import sharding
from salmonn_jax.configs import get_preset
from salmonn_jax.models import parameters
from salmonn_jax.planning import accounting, aot, hlo

DEBUG = get_preset("debug")


QWEN3 = {"attention_bias": "qkvo", "qk_norm": True, "head_dim": 16}


@pytest.mark.parametrize(
    ("remat", "changes"), [("none", {}), ("dots", QWEN3), pytest.param("full", QWEN3, marks=pytest.mark.slow)]
)
def test_the_formula_gives_the_operations_of_the_compiled_step(remat, changes):
    model = dataclasses.replace(DEBUG.model, llama=dataclasses.replace(DEBUG.model.llama, **changes))
    preset = dataclasses.replace(DEBUG, model=model, recipe=dataclasses.replace(DEBUG.recipe, remat_policy=remat))
    program = compile_train_step(preset, sharding.make_mesh({}, jax.devices()[:1]))
    flops = accounting.step_flops(model, DEBUG.recipe.data, remat_policy=remat)
    assert hlo.dot_flops(program.hlo_text) == pytest.approx(flops.hardware_flops, rel=1e-3)


@pytest.mark.slow
def test_micro_batches_need_less_memory_for_the_same_operations():
    """Every row and clip needs the same temporary memory, of which four micro-batches need a fourth at a time."""
    device = sharding.make_mesh({}, jax.devices()[:1])
    whole, parts = (
        compile_train_step(
            dataclasses.replace(DEBUG, recipe=dataclasses.replace(DEBUG.recipe, gradient_accumulation_steps=n)), device
        )
        for n in (1, 4)
    )
    assert hlo.dot_flops(parts.hlo_text) == hlo.dot_flops(whole.hlo_text)
    assert parts.temporary < 0.5 * whole.temporary


def test_the_13b_costs_four_operations_a_parameter_and_token():
    model, data = get_preset("salmonn_13b_stage2").model, get_preset("salmonn_13b_stage2").recipe.data
    flops = accounting.step_flops(model, data, remat_policy="full")
    c = model.llama
    weights = (
        c.num_hidden_layers * c.hidden_size * (4 * c.hidden_size + 3 * c.intermediate_size)
        + c.hidden_size * c.vocab_size
    )
    assert flops.llama == 4 * weights * data.rows * data.seq_len
    assert flops.duplicated == 0 and flops.hardware_flops == flops.model_flops + flops.remat
    assert accounting.step_flops(model, data).remat == 0


def test_chips_that_share_a_language_model_share_its_clips_where_they_can():
    model, data = get_preset("salmonn_13b_stage2").model, get_preset("salmonn_13b_stage2").recipe.data

    def step_flops(data, num_devices):
        return accounting.step_flops(model, data, tensor_shards=4, num_devices=num_devices)

    assert step_flops(data, 64).duplicated == 0
    few = dataclasses.replace(data, rows=16, clips=16, streams=16)
    alone = step_flops(few, 16)
    assert step_flops(few, 64).model_flops == alone.model_flops
    assert step_flops(few, 64).duplicated == 3 * (alone.features + sum(alone.encoders.values()) + alone.qformer)


def test_bytes_by_kind_are_those_of_the_program():
    """Compares the bytes of one chip: a fourth of the frozen weights, and everything that is trained."""
    program = compile_train_step(DEBUG, sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    shapes = parameters.model_structure(DEBUG.model).shapes
    chosen = parameters.trainable_paths(shapes, DEBUG.recipe.trainable)
    trained = sum(4 * x.size for path, x in shapes.items() if path in chosen)
    frozen = sum(4 * x.size for path, x in shapes.items() if path not in chosen)
    assert frozen / 4 < program.frozen < frozen
    assert program.trained == trained
    # Two moments of each parameter, and counters.
    assert 2 * program.trained <= program.optimizer < 2 * program.trained + 100
    assert program.needed >= program.frozen + program.trained + program.optimizer + program.batch


def test_a_run_with_an_encoder_cache_has_frames_in_place_of_samples_and_no_encoders():
    """Compares inputs with those of a run without, on a mesh of eight with one clip each; nothing is compiled."""
    recipe = dataclasses.replace(DEBUG.recipe, data=dataclasses.replace(DEBUG.recipe.data, encoder_cache="store"))
    cached, mesh = dataclasses.replace(DEBUG, recipe=recipe), sharding.make_mesh({"data": 8})
    ours, theirs = (compile_train_step(preset, mesh, hbm_limit=1.0) for preset in (cached, DEBUG))
    structure = parameters.model_structure(DEBUG.model)
    assert theirs.frozen - ours.frozen == 4 * sum(structure.shapes[path].size for path in structure.encoder_paths)
    assert (ours.trained, ours.optimizer) == (theirs.trained, theirs.optimizer)
    assert ours.batch - theirs.batch == 4 * 50 * 32 - 2 * 16_000
    ours, theirs = (accounting.step_flops(DEBUG.model, preset.recipe.data) for preset in (cached, DEBUG))
    assert ours.model_flops == theirs.model_flops - theirs.features - sum(theirs.encoders.values())


def test_replicated_weights_have_collectives_for_what_is_trained_only():
    """The collectives carry as many bytes as there are of trained parameters, and each layer's once.

    On CPU, XLA does not partition the front ends and BEATs' grouped convolution and gathers their inputs; on TPU it
    partitions them (`tests/launch/test_plan.py`).
    """
    program = compile_train_step(DEBUG, sharding.make_mesh({"data": 8}))
    others = [one for one in program.collectives if "fft" not in one.source and "conv_general" not in one.source]
    assert {one.kind for one in others} == {"all-reduce"}
    assert sum(one.bytes * one.times for one in others) == pytest.approx(program.trained, rel=0.01)


def test_collectives_in_a_scan_are_counted_as_often_as_they_run():
    mesh = sharding.make_mesh({"fsdp": 8})
    cut = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))

    def body(x, kernel):
        return jnp.tanh(x @ kernel), None

    def loop(x, kernels):
        return jax.lax.scan(body, x, kernels)[0]

    shapes = jax.ShapeDtypeStruct((16, 64), jnp.float32), jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
    everywhere = sharding.replicated(mesh)
    text = jax.jit(loop, in_shardings=(everywhere, cut), out_shardings=everywhere).lower(*shapes).compile().as_text()
    assert sum(one.times for one in hlo.collectives(text)) in (5, 6)
    assert hlo.dot_flops(text) == 5 * 2 * 16 * 64 * 64 // 8


def test_decoding_programs_compile_and_fit_together():
    structure, mesh = parameters.model_structure(DEBUG.model), sharding.make_mesh({"data": 4, "tensor": 2})
    weights = aot.abstract_weights(structure, DEBUG.recipe.trainable, "float32", mesh)
    prefill, step = aot.compile_decoding(structure, weights, 16, mesh)
    assert prefill.name == "prefill" and step.name == "decode step"
    assert step.batch > prefill.batch  # with the cache
    assert step.needed > 0 and prefill.temporary > 0
