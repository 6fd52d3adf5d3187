"""Tests of the mapping engine, and of the conversion tables on every key of the released files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from salmonn_jax.config import LoraConfig, ModelConfig, WhisperConfig
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.conversion import mapping, tables
from salmonn_jax.conversion.formats.tensors import LazyTensor
from salmonn_jax.conversion.mapping import CONV1D_KERNEL, IDENTITY, LINEAR_KERNEL, SQUEEZE_FIRST_AXIS, Rule, Table
from salmonn_jax.conversion.to_jax import ORIGINAL_TRAINABLE
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from tests import golden, torch_checkpoints

TABLE = Table(
    "toy",
    (Rule("layers.{layer}.fc.weight", "x/layers/fc", LINEAR_KERNEL), Rule("norm", "x/norm"), Rule("other", "y/other")),
    ((r"position_ids", "a counter"),),
)
BEATS = {rule.path.removeprefix("beats/"): rule.transform for rule in tables.beats(2).rules}
SHAPES = {"x/layers/fc": (2, 3, 4), "x/norm": (5,)}


def tensor(*shape: int, dtype: str = "float32") -> LazyTensor:
    """Returns a random tensor."""
    value = np.random.default_rng(len(shape)).normal(size=shape).astype(dtype)
    return LazyTensor(shape, np.dtype(dtype), lambda: value)


def complete_checkpoint() -> dict[str, LazyTensor]:
    """Returns a checkpoint that matches TABLE and SHAPES."""
    return {"layers.0.fc.weight": tensor(4, 3), "layers.1.fc.weight": tensor(4, 3), "norm": tensor(5)}


def test_layers_are_stacked_in_order_and_transposed():
    tensors = complete_checkpoint()
    params = mapping.match_checkpoints((TABLE, SHAPES, tensors))
    assert set(params) == set(SHAPES)
    expected = np.stack([tensors[f"layers.{i}.fc.weight"].read().T for i in range(2)])
    np.testing.assert_array_equal(golden.full_array(params["x/layers/fc"]), expected)
    assert [layer for layer, _ in params["x/layers/fc"].pieces()] == [0, 1]
    assert all(piece.flags.c_contiguous for _, piece in params["x/layers/fc"].pieces())


def test_one_error_lists_all_mismatches():
    tensors = complete_checkpoint() | {"extra": tensor(2), "norm": tensor(6), "position_ids": tensor(1)}
    del tensors["layers.1.fc.weight"]
    with pytest.raises(UserError) as error:
        mapping.match_checkpoints((TABLE, SHAPES, tensors))
    text = str(error.value)
    assert "missing layers.1.fc.weight" in text
    assert "unknown extra [2]" in text
    assert "norm has shape [6], not [5]" in text
    assert "position_ids" not in text
    assert "\n" not in text


def test_equal_mismatches_of_layers_are_summarized():
    with pytest.raises(UserError, match=r"missing layers\.\*\.fc\.weight \(20 times\)$"):
        mapping.match_checkpoints((TABLE, {"x/layers/fc": (20, 3, 4)}, {}))


def test_one_error_covers_all_checkpoints():
    toy, other = Table("toy", TABLE.rules[1:2]), Table("other toy", (Rule("only", "z/only"),))
    with pytest.raises(UserError, match=r"not the toy .*missing norm.*; this is not the other toy .*missing only"):
        mapping.match_checkpoints((toy, {"x/norm": (5,)}, {}), (other, {"z/only": (1,)}, {}))


def test_stacked_layers_get_a_common_dtype():
    def dtype_of(first: str, second: str) -> str:
        tensors = complete_checkpoint() | {"layers.0.fc.weight": tensor(4, 3, dtype=first)}
        tensors["layers.1.fc.weight"] = tensor(4, 3, dtype=second)
        return str(mapping.match_checkpoints((TABLE, SHAPES, tensors))["x/layers/fc"].dtype)

    assert dtype_of("float16", "float16") == "float16"
    assert dtype_of("float32", "float64") == "float64"
    assert dtype_of("float16", "bfloat16") == "float32"


def test_ignored_tensors_have_a_reason():
    assert mapping.ignored_tensors(TABLE, complete_checkpoint() | {"position_ids": tensor(1)}) == {
        "position_ids": "a counter"
    }


@pytest.mark.parametrize(
    ("rules", "shapes", "says"),
    [
        ((Rule("a", "p"), Rule("a", "q")), {"p": (1,), "q": (1,)}, "two rules for a"),
        ((Rule("a", "p"), Rule("b", "p")), {"p": (1,)}, "expected exactly one rule for each"),
        ((Rule("a", "p"),), {"p": (1,), "q": (1,)}, "expected exactly one rule for each of"),
    ],
)
def test_wrong_table_raises_value_error(rules, shapes, says):
    with pytest.raises(ValueError, match=says):
        mapping.destinations(Table("toy", rules), shapes)


@pytest.mark.parametrize(
    "transform",
    [
        IDENTITY,
        LINEAR_KERNEL,
        CONV1D_KERNEL,
        SQUEEZE_FIRST_AXIS,
        BEATS["patch_kernel"],
        BEATS["layers/gate_scale"],
        BEATS["positional_conv/magnitude"],
    ],
)
def test_transforms_round_trip(transform):
    vectors = (BEATS["layers/gate_scale"], BEATS["positional_conv/magnitude"])
    shape = (3, 4, 5) if transform is CONV1D_KERNEL else (6,) if transform in vectors else (4, 7)
    jax_array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    torch_array = transform.to_torch(jax_array)
    assert torch_array.shape == transform.torch_shape(shape)
    np.testing.assert_array_equal(transform.to_jax(torch_array, shape), jax_array)


def released_tensors(name: str) -> dict[str, LazyTensor]:
    """Returns names, shapes and dtypes of a released file as tensors that cannot be read."""
    path = golden.SHARED / "reference" / "salmonn_keys.json"
    golden.require(path)
    listed = json.loads(path.read_text())[name]
    return {k: LazyTensor(tuple(shape), np.dtype(dtype), None) for k, (shape, dtype) in listed.items()}


@pytest.mark.parametrize(("size", "model"), [("7b", MODEL_7B), ("13b", MODEL_13B)])
def test_every_key_of_the_released_checkpoints(size, model):
    shapes = {path: leaf.shape for path, leaf in parameters.model_structure(model).shapes.items()}
    trained = parameters.trainable_paths(shapes, ORIGINAL_TRAINABLE)
    tensors = released_tensors(f"salmonn_{size}_checkpoint_model")
    params = mapping.match_checkpoints((tables.SALMONN, {path: shapes[path] for path in trained}, tensors))
    num_sources = sum(len(param.sources) for param in params.values())
    assert num_sources + len(mapping.ignored_tensors(tables.SALMONN, tensors)) == len(tensors)


@pytest.mark.parametrize(
    ("name", "table", "path_prefix"),
    [
        ("whisper_large_v2_encoder_hf", tables.whisper_hf(""), "whisper/"),
        ("beats_iter3plus_as2m_ft_cpt2_model", tables.beats(16), "beats/"),
    ],
)
def test_every_key_of_the_released_encoders(name, table, path_prefix):
    shapes = {path: leaf.shape for path, leaf in parameters.model_structure(MODEL_13B).shapes.items()}
    own_shapes = {path: shape for path, shape in shapes.items() if path.startswith(path_prefix)}
    tensors = released_tensors(name)
    params = mapping.match_checkpoints((table, own_shapes, tensors))
    assert sum(len(p.sources) for p in params.values()) + len(mapping.ignored_tensors(table, tensors)) == len(tensors)


def meta_tensors(build) -> dict[str, LazyTensor]:
    """Returns names and shapes of the PyTorch module that `build` makes, without memory for its weights."""
    import torch

    with torch.device("meta"):
        state = build().state_dict()
    return {k: LazyTensor(tuple(v.shape), np.dtype(np.float32), None) for k, v in state.items()}


def check_all_tensors_are_used(table: Table, config: ModelConfig, tensors: dict[str, LazyTensor]) -> None:
    """Asserts that each tensor is converted or ignored, and each parameter of the model has a source."""
    shapes = {path: leaf.shape for path, leaf in parameters.model_structure(config).shapes.items()}
    params = mapping.match_checkpoints((table, shapes, tensors))
    assert sum(len(p.sources) for p in params.values()) + len(mapping.ignored_tensors(table, tensors)) == len(tensors)


@pytest.mark.parametrize(("size", "model"), [("7b", MODEL_7B), ("13b", MODEL_13B)])
def test_every_key_of_a_vicuna(size, model):
    """Checks the released keys, of which one layer of the 7B is listed, and those of transformers at full size."""
    torch_checkpoints.require_packages()
    import transformers

    llama_config = model.llama
    config = ModelConfig(whisper=None, beats=None, qformer=None, llama=llama_config, lora=LoraConfig(target_modules=()))
    if size == "7b":
        listed = released_tensors("vicuna_7b_llama_hf_layer0_and_globals")
        layers = {
            k.replace(".0.", f".{i}.", 1): v
            for k, v in listed.items()
            if ".layers." in k
            for i in range(llama_config.num_hidden_layers)
        }
        check_all_tensors_are_used(tables.llama(tie_word_embeddings=False), config, listed | layers)
    torch_config = transformers.LlamaConfig(
        vocab_size=llama_config.vocab_size,
        hidden_size=llama_config.hidden_size,
        intermediate_size=llama_config.intermediate_size,
        num_hidden_layers=llama_config.num_hidden_layers,
        num_attention_heads=llama_config.num_attention_heads,
    )
    check_all_tensors_are_used(
        tables.llama(tie_word_embeddings=False),
        config,
        meta_tensors(lambda: transformers.LlamaForCausalLM(torch_config)),
    )


@pytest.mark.parametrize(
    ("d_model", "layers", "heads", "mels"),
    [(384, 4, 6, 80), (512, 6, 8, 80), (768, 12, 12, 80), (1024, 24, 16, 80), (1280, 32, 20, 80), (1280, 32, 20, 128)],
    ids=["tiny", "base", "small", "medium", "large-v2", "large-v3"],
)
def test_every_key_of_every_whisper(d_model, layers, heads, mels):
    torch_checkpoints.require_packages("whisper")
    import transformers
    from whisper.model import AudioEncoder

    whisper_config = WhisperConfig(
        num_mel_bins=mels,
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
    )
    config = ModelConfig(whisper=whisper_config, beats=None, qformer=None, llama=None)
    torch_config = transformers.WhisperConfig(
        num_mel_bins=mels,
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        decoder_layers=1,
        decoder_attention_heads=heads,
    )
    hugging_face = meta_tensors(lambda: transformers.WhisperForConditionalGeneration(torch_config))
    check_all_tensors_are_used(tables.whisper_hf("model.encoder."), config, hugging_face)
    openai = meta_tensors(lambda: AudioEncoder(mels, 1500, d_model, heads, layers))
    check_all_tensors_are_used(
        tables.WHISPER_OPENAI, config, {f"encoder.{name}": value for name, value in openai.items()}
    )
