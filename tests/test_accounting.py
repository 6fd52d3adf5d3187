"""Tests of the FLOP formulas against compiled steps, and of the memory and collectives read from compiled programs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from salmonn_jax import accounting, aot, hlo, sharding
from salmonn_jax.config import RunConfig
from salmonn_jax.configs import get_config

CONFIG = get_config("debug")


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_step_flops_equal_those_of_the_compiled_step(remat):
    config = dataclasses.replace(CONFIG, remat_policy=remat)
    program = aot.compile_train_step(config, sharding.make_mesh({}, jax.devices()[:1]))
    assert hlo.dot_flops(program.hlo_text) == pytest.approx(accounting.step_flops(config).hardware_flops, rel=1e-3)


def test_13b_costs_4_flops_per_parameter_and_token():
    config: RunConfig = get_config("salmonn_13b_stage2")
    flops = accounting.step_flops(config)
    llama = config.model.llama
    layer_weights = llama.hidden_size * (4 * llama.hidden_size + 3 * llama.intermediate_size)
    weights = llama.num_hidden_layers * layer_weights + llama.hidden_size * llama.vocab_size
    assert flops.llama == 4 * weights * config.data.rows * config.data.seq_len
    assert flops.duplicated == 0 and flops.hardware_flops == flops.model_flops + flops.remat
    assert accounting.step_flops(dataclasses.replace(config, remat_policy="none")).remat == 0


def test_encoders_are_duplicated_only_if_clips_do_not_divide_over_chips():
    config = dataclasses.replace(get_config("salmonn_13b_stage2"), mesh={"tensor": 4})
    assert accounting.step_flops(config, 64).duplicated == 0
    small = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=16, clips=16))
    not_duplicated = accounting.step_flops(small, 16)
    assert accounting.step_flops(small, 64).model_flops == not_duplicated.model_flops
    audio_flops = sum(getattr(not_duplicated, name) for name in ("features", "whisper", "beats", "qformer"))
    assert accounting.step_flops(small, 64).duplicated == 3 * audio_flops


def test_bytes_by_kind():
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2})
    program = aot.compile_train_step(CONFIG, mesh)
    structure = aot.parameters.model_structure(CONFIG.model)
    trained, frozen = aot._abstract_weights(CONFIG, structure, mesh)
    frozen_bytes = sum(x.size * 4 for x in frozen.values())
    assert frozen_bytes / 4 < program.frozen < frozen_bytes
    assert program.trained == sum(x.size * 4 for x in trained.values())
    # Adam has two moments per parameter, and counters.
    assert 2 * program.trained <= program.optimizer < 2 * program.trained + 100
    assert program.needed >= program.frozen + program.trained + program.optimizer + program.batch


def test_replicated_weights_need_collectives_for_trained_parameters_only():
    """Compares the bytes of all collectives with those of the trained parameters.

    On CPU, XLA does not shard the front ends and the grouped convolution of BEATs, so it gathers their inputs. These
    collectives do not count. On TPU there are none (`tests/launch/test_plan.py`).
    """
    program = aot.compile_train_step(CONFIG, sharding.make_mesh({"data": 8}))
    collectives = [c for c in program.collectives if "fft" not in c.source and "conv_general" not in c.source]
    assert {c.kind for c in collectives} == {"all-reduce"}
    assert sum(c.bytes * c.times for c in collectives) == pytest.approx(program.trained, rel=0.01)


def test_collectives_in_a_scan_are_multiplied_by_its_trip_count():
    mesh = sharding.make_mesh({"fsdp": 8})
    column_sharding = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))

    def body(x, kernel):
        return jnp.tanh(x @ kernel), None

    def loop(x, kernels):
        return jax.lax.scan(body, x, kernels)[0]

    shapes = jax.ShapeDtypeStruct((16, 64), jnp.float32), jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
    replicated = sharding.replicated(mesh)
    jitted = jax.jit(loop, in_shardings=(replicated, column_sharding), out_shardings=replicated)
    text = jitted.lower(*shapes).compile().as_text()
    assert sum(c.times for c in hlo.collectives(text)) in (5, 6)
    assert hlo.dot_flops(text) == 5 * 2 * 16 * 64 * 64 // 8


def test_decoding_programs_compile():
    prefill, step = aot.compile_decoding(CONFIG, sharding.make_mesh({"data": 4, "tensor": 2}))
    assert prefill.name == "prefill" and step.name == "decode step"
    assert step.batch > prefill.batch  # it includes the key-value cache
    assert step.needed > 0 and prefill.temporary > 0
