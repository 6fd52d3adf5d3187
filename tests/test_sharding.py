"""Tests of the mesh, and of the sharding rules of frozen weights."""

from __future__ import annotations

import dataclasses

import pytest
from jax.sharding import PartitionSpec

from salmonn_jax import sharding
from salmonn_jax.config import LoraConfig
from salmonn_jax.configs import get_preset
from salmonn_jax.configs.salmonn import MODEL_13B
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters

ALL_ADAPTERS = LoraConfig(target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))


@pytest.mark.parametrize(
    "model",
    [
        MODEL_13B,
        dataclasses.replace(MODEL_13B, lora=ALL_ADAPTERS),
        dataclasses.replace(
            MODEL_13B, beats=None, llama=dataclasses.replace(MODEL_13B.llama, tie_word_embeddings=True)
        ),
        dataclasses.replace(
            MODEL_13B,
            llama=dataclasses.replace(MODEL_13B.llama, attention_bias="qkvo", qk_norm=True, mlp_bias=True),
            lora=ALL_ADAPTERS,
        ),
        dataclasses.replace(MODEL_13B, whisper=None),
        get_preset("debug").model,
    ],
    ids=["13B", "adapters everywhere", "tied, no BEATs", "biases and norms", "no Whisper", "debug"],
)
def test_every_parameter_matches_one_rule(model):
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 4})
    for path, leaf in parameters.model_structure(model).shapes.items():
        sharding.frozen_spec(path, leaf.shape, mesh)


def test_most_weights_of_the_13b_are_split():
    """Checks that with fsdp=2 and tensor=4 a device holds little more than an eighth of the 13B's parameters."""
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 4})
    total = per_device = 0
    for path, leaf in parameters.model_structure(MODEL_13B).shapes.items():
        spec = sharding.frozen_spec(path, leaf.shape, mesh)
        axis_sizes = [mesh.shape[axis] for axis in spec if axis]
        total += leaf.size
        per_device += leaf.size // (axis_sizes[0] if axis_sizes else 1) // (axis_sizes[1] if len(axis_sizes) > 1 else 1)
    assert per_device < total / 8 * 1.25


def test_a_dimension_that_does_not_divide_evenly_is_not_split():
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 4})
    assert sharding.frozen_spec("llama/embedding", (642, 64), mesh) == PartitionSpec(None, "fsdp")
    assert sharding.frozen_spec("llama/embedding", (640, 64), mesh) == PartitionSpec("tensor", "fsdp")
    default_mesh = sharding.make_mesh({})
    assert default_mesh.shape["fsdp"] == 1 and default_mesh.shape["tensor"] == 1


def test_errors_for_wrong_rules(monkeypatch):
    mesh = sharding.make_mesh({})
    with pytest.raises(ValueError, match="0 sharding rules for llama/other"):
        sharding.frozen_spec("llama/other", (2, 2), mesh)
    monkeypatch.setattr(
        sharding, "FROZEN_RULES", (("x", PartitionSpec("fsdp", "fsdp")), ("y|x/y", PartitionSpec("fsdp")))
    )
    with pytest.raises(ValueError, match="does not fit its shape"):
        sharding.frozen_spec("x", (2, 2), mesh)
    with pytest.raises(ValueError, match="does not fit its shape"):
        sharding.frozen_spec("y", (2, 2), mesh)


@pytest.mark.parametrize(("sizes", "needed"), [({"tensor": 16}, 16), ({"fsdp": 3}, 6), ({"data": 3}, 3)])
def test_a_mesh_of_another_size_is_refused(sizes, needed):
    with pytest.raises(UserError, match=f"needs {needed} devices, not 8"):
        sharding.make_mesh(sizes)
