"""The mapping engine: strict both ways, everything told at once, exact; every key of the released files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from salmonn_jax.config import LoraConfig, ModelConfig, WhisperConfig
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.conversion import mapping, tables
from salmonn_jax.conversion.mapping import CONV1D_KERNEL, IDENTITY, LINEAR_KERNEL, SQUEEZE_FIRST_AXIS, Rule, Table
from salmonn_jax.conversion.tensors import LazyTensor
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
    value = np.random.default_rng(len(shape)).normal(size=shape).astype(dtype)
    return LazyTensor(shape, np.dtype(dtype), lambda: value)


def whole() -> dict[str, LazyTensor]:
    return {"layers.0.fc.weight": tensor(4, 3), "layers.1.fc.weight": tensor(4, 3), "norm": tensor(5)}


def test_layers_are_stacked_in_order_and_transposed():
    tensors = whole()
    found = mapping.match_checkpoints((TABLE, SHAPES, tensors))
    assert set(found) == set(SHAPES)
    expected = np.stack([tensors[f"layers.{i}.fc.weight"].read().T for i in range(2)])
    np.testing.assert_array_equal(golden.full_array(found["x/layers/fc"]), expected)
    assert [layer for layer, _ in found["x/layers/fc"].pieces()] == [0, 1]
    assert all(piece.flags.c_contiguous for _, piece in found["x/layers/fc"].pieces())


def test_all_that_does_not_fit_is_told_at_once():
    tensors = whole() | {"extra": tensor(2), "norm": tensor(6), "position_ids": tensor(1)}
    del tensors["layers.1.fc.weight"]
    with pytest.raises(UserError) as error:
        mapping.match_checkpoints((TABLE, SHAPES, tensors))
    text = str(error.value)
    assert "missing layers.1.fc.weight" in text
    assert "unknown extra [2]" in text
    assert "norm has shape [6], not [5]" in text
    assert "position_ids" not in text
    assert "\n" not in text


def test_layers_that_are_wrong_alike_are_told_as_one():
    with pytest.raises(UserError, match=r"missing layers\.\*\.fc\.weight \(20 times\)$"):
        mapping.match_checkpoints((TABLE, {"x/layers/fc": (20, 3, 4)}, {}))


def test_the_faults_of_all_parts_are_told_together():
    toy, other = Table("toy", TABLE.rules[1:2]), Table("other toy", (Rule("only", "z/only"),))
    with pytest.raises(UserError, match=r"not the toy .*missing norm.*; this is not the other toy .*missing only"):
        mapping.match_checkpoints((toy, {"x/norm": (5,)}, {}), (other, {"z/only": (1,)}, {}))


def test_layers_of_several_dtypes_become_one_that_holds_them():
    def dtype_of(first: str, second: str) -> str:
        tensors = whole() | {"layers.0.fc.weight": tensor(4, 3, dtype=first)}
        tensors["layers.1.fc.weight"] = tensor(4, 3, dtype=second)
        return str(mapping.match_checkpoints((TABLE, SHAPES, tensors))["x/layers/fc"].dtype)

    assert dtype_of("float16", "float16") == "float16"
    assert dtype_of("float32", "float64") == "float64"
    assert dtype_of("float16", "bfloat16") == "float32"


def test_what_is_ignored_has_a_reason():
    assert mapping.ignored_tensors(TABLE, whole() | {"position_ids": tensor(1)}) == {"position_ids": "a counter"}


@pytest.mark.parametrize(
    ("rules", "shapes", "says"),
    [
        ((Rule("a", "p"), Rule("a", "q")), {"p": (1,), "q": (1,)}, "two rules for a"),
        ((Rule("a", "p"), Rule("b", "p")), {"p": (1,)}, "not one rule each"),
        ((Rule("a", "p"),), {"p": (1,), "q": (1,)}, "not one rule each for"),
    ],
)
def test_a_faulty_table_is_a_fault_of_the_program(rules, shapes, says):
    with pytest.raises(ValueError, match=says):
        mapping.destinations(Table("toy", rules), shapes)


@pytest.mark.parametrize(
    "how",
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
def test_transforms_are_their_own_way_back(how):
    vectors = (BEATS["layers/gate_scale"], BEATS["positional_conv/magnitude"])
    shape = (3, 4, 5) if how is CONV1D_KERNEL else (6,) if how in vectors else (4, 7)
    ours = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    theirs = how.to_torch(ours)
    assert theirs.shape == how.torch_shape(shape)
    np.testing.assert_array_equal(how.to_jax(theirs, shape), ours)


def keys(name: str) -> dict[str, LazyTensor]:
    """A manifest of the released files, as tensors that cannot be read."""
    path = golden.SHARED / "reference" / "salmonn_keys.json"
    golden.require(path)
    listed = json.loads(path.read_text())[name]
    return {k: LazyTensor(tuple(shape), np.dtype(dtype), None) for k, (shape, dtype) in listed.items()}


@pytest.mark.parametrize(("size", "model"), [("7b", MODEL_7B), ("13b", MODEL_13B)])
def test_every_key_of_the_released_checkpoints(size, model):
    shapes = {path: leaf.shape for path, leaf in parameters.model_structure(model).shapes.items()}
    trained = parameters.trainable_paths(shapes, ORIGINAL_TRAINABLE)
    tensors = keys(f"salmonn_{size}_checkpoint_model")
    found = mapping.match_checkpoints((tables.SALMONN, {path: shapes[path] for path in trained}, tensors))
    parts = sum(len(parameter.sources) for parameter in found.values())
    assert parts + len(mapping.ignored_tensors(tables.SALMONN, tensors)) == len(tensors)


@pytest.mark.parametrize(
    ("name", "table", "part"),
    [
        ("whisper_large_v2_encoder_hf", tables.whisper_hf(""), "whisper/"),
        ("beats_iter3plus_as2m_ft_cpt2_model", tables.beats(16), "beats/"),
    ],
)
def test_every_key_of_the_released_encoders(name, table, part):
    shapes = {path: leaf.shape for path, leaf in parameters.model_structure(MODEL_13B).shapes.items()}
    own = {path: shape for path, shape in shapes.items() if path.startswith(part)}
    tensors = keys(name)
    found = mapping.match_checkpoints((table, own, tensors))
    assert sum(len(p.sources) for p in found.values()) + len(mapping.ignored_tensors(table, tensors)) == len(tensors)


def without_weights(build) -> dict[str, LazyTensor]:
    """The tensors of a PyTorch module of any size, of which only names and shapes are made."""
    import torch

    with torch.device("meta"):
        state = build().state_dict()
    return {k: LazyTensor(tuple(v.shape), np.dtype(np.float32), None) for k, v in state.items()}


def every_one_is_placed(table: Table, config: ModelConfig, tensors: dict[str, LazyTensor]) -> None:
    shapes = {path: leaf.shape for path, leaf in parameters.model_structure(config).shapes.items()}
    found = mapping.match_checkpoints((table, shapes, tensors))
    assert sum(len(p.sources) for p in found.values()) + len(mapping.ignored_tensors(table, tensors)) == len(tensors)


@pytest.mark.parametrize(("size", "model"), [("7b", MODEL_7B), ("13b", MODEL_13B)])
def test_every_key_of_a_vicuna(size, model):
    """Those of the manifest, which has one layer of the 7B; and those of transformers at full size."""
    torch_checkpoints.require_packages()
    import transformers

    c = model.llama
    alone = ModelConfig(whisper=None, beats=None, qformer=None, llama=c, lora=LoraConfig(target_modules=()))
    if size == "7b":
        listed = keys("vicuna_7b_llama_hf_layer0_and_globals")
        layers = {
            k.replace(".0.", f".{i}.", 1): v
            for k, v in listed.items()
            if ".layers." in k
            for i in range(c.num_hidden_layers)
        }
        every_one_is_placed(tables.llama(tie_word_embeddings=False), alone, listed | layers)
    theirs = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
    )
    every_one_is_placed(
        tables.llama(tie_word_embeddings=False), alone, without_weights(lambda: transformers.LlamaForCausalLM(theirs))
    )


@pytest.mark.parametrize(
    ("width", "layers", "heads", "mels"),
    [(384, 4, 6, 80), (512, 6, 8, 80), (768, 12, 12, 80), (1024, 24, 16, 80), (1280, 32, 20, 80), (1280, 32, 20, 128)],
    ids=["tiny", "base", "small", "medium", "large-v2", "large-v3"],
)
def test_every_key_of_every_whisper(width, layers, heads, mels):
    torch_checkpoints.require_packages("whisper")
    import transformers
    from whisper.model import AudioEncoder

    ours = WhisperConfig(
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
    )
    alone = ModelConfig(whisper=ours, beats=None, qformer=None, llama=None)
    theirs = transformers.WhisperConfig(
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,
        decoder_attention_heads=heads,
    )
    hugging_face = without_weights(lambda: transformers.WhisperForConditionalGeneration(theirs))
    every_one_is_placed(tables.whisper_hf("model.encoder."), alone, hugging_face)
    openai = without_weights(lambda: AudioEncoder(mels, 1500, width, heads, layers))
    every_one_is_placed(tables.WHISPER_OPENAI, alone, {f"encoder.{name}": value for name, value in openai.items()})
