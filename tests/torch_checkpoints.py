"""Writers of small PyTorch checkpoints with random weights, made with the packages that define the formats.

The conversion tests use them as users' checkpoints. `salmonn_jax.conversion.comparison.torch_reference` computes the
expected activations. Tests whose packages are missing are skipped with the reason.
"""

from __future__ import annotations

import importlib
import itertools
import json
import pathlib
from typing import Any

import pytest

from tests.golden import MINI


def require_packages(*packages: str) -> None:
    """Skips the calling test if torch, transformers or one of `packages` is missing."""
    for name in ("torch", "transformers", *packages):
        try:
            importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed ({error}): `make test` installs it if possible")


def write_llama(
    directory: pathlib.Path, *, model_type: str = "llama", dtype: str = "float32", **changes: Any
) -> pathlib.Path:
    """Writes a language model as transformers saves it, in several shards, with the golden tokenizer.

    Args:
      directory: directory to write.
      model_type: model type of transformers, such as "qwen3".
      dtype: name of the weights' torch dtype.
      **changes: changed fields of the transformers configuration.

    Returns:
      `directory`.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    values = {
        "vocab_size": 400,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    config = transformers.AutoConfig.for_model(model_type, **values)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    _randomize_weights(model)
    model.save_pretrained(directory, max_shard_size="100KB")
    tokenizer = MINI.directory / "vicuna" / "tokenizer.model"
    (directory / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return directory


def write_tokenizer(
    directory: pathlib.Path,
    special_tokens: tuple[str, ...],
    *,
    bos_token: str | None,
    eos_token: str,
    adds_bos: bool = False,
    **config: Any,
) -> pathlib.Path:
    """Writes a byte-level BPE tokenizer, as transformers saves it. It replaces the tokenizer of `write_llama`.

    Args:
      directory: directory to write.
      special_tokens: special tokens, which get the ids from 0.
      bos_token: start token, or None.
      eos_token: end token.
      adds_bos: whether the tokenizer adds the start token to a text, as that of LLaMA 3.
      **config: further fields of `tokenizer_config.json`, such as `chat_template`.

    Returns:
      `directory`.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special_tokens),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a dog barks, what is heard in this clip?", "user assistant system"], trainer)
    if adds_bos:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))]
        )
    (directory / "tokenizer.model").unlink(missing_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos_token, "eos_token": eos_token} | config
    (directory / "tokenizer_config.json").write_text(json.dumps(values))
    return directory


def chain_tokens(llm: pathlib.Path, token_ids: list[int]) -> None:
    """Changes the weights of `write_llama` so that the model continues each of these tokens with the next one."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(llm)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "lm_head" in name:
                value.zero_()
        model.model.norm.weight.fill_(1.0)
        embedding = torch.nn.functional.normalize(torch.randn(model.model.embed_tokens.weight.shape), dim=1)
        model.model.embed_tokens.weight.copy_(embedding)
        for token, next_token in itertools.pairwise(token_ids):
            model.lm_head.weight[next_token] += embedding[token]
    model.save_pretrained(llm, max_shard_size="100KB")


def write_whisper(directory: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Writes a Whisper with its decoder, as transformers saves it. `changes` are fields of its configuration."""
    import torch
    import transformers

    torch.manual_seed(1)
    values = {
        "num_mel_bins": 80,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 64,
        "vocab_size": 100,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 0,
    } | changes
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**values))
    _randomize_weights(model)
    model.save_pretrained(directory)
    return directory


def write_openai_whisper(path: pathlib.Path) -> pathlib.Path:
    """Writes a Whisper with its decoder in half precision, as OpenAI distributes it."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(4)
    model = Whisper(ModelDimensions(80, 1500, 32, 2, 2, 100, 8, 32, 2, 1))
    _randomize_weights(model)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    torch.save({"dims": vars(model.dims), "model_state_dict": weights}, path)
    return path


def write_beats(path: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Writes a fine-tuned BEATs as Microsoft distributes it: `cfg`, and `model` with classifier and tied weights."""
    import torch

    from salmonn_jax.conversion.comparison import torch_reference

    with torch_reference.stub_torchaudio():
        from openbeats import beats_encoder

    torch.manual_seed(2)
    cfg = {
        "encoder_layers": 3,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
        "activation_fn": "gelu",
        "layer_norm_first": False,
        "deep_norm": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.05,
        "dropout_input": 0.0,
        "conv_bias": False,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "relative_position_embedding": True,
        "num_buckets": 64,
        "max_distance": 200,
        "gru_rel_pos": True,
        "input_patch_size": 16,
        "embed_dim": 24,
    } | changes
    model = beats_encoder.BeatsEncoder(input_size=1, beats_config=cfg)
    _randomize_weights(model)
    weights = {k: v for k, v in model.state_dict().items() if "_pad." not in k}
    weights |= {"predictor.weight": torch.randn(5, cfg["encoder_embed_dim"]), "predictor.bias": torch.randn(5)}
    torch.save({"cfg": cfg, "model": weights}, path)
    return path


def write_salmonn(
    path: pathlib.Path,
    *,
    encoder_hidden_size: int,
    llm: pathlib.Path,
    config: dict[str, Any],
    target_modules: tuple[str, ...],
    hidden_size: int = 32,
    num_attention_heads: int = 4,
    num_hidden_layers: int = 2,
) -> pathlib.Path:
    """Writes a SALMONN `.pth` with an optimizer state, as the original's trainer saves it.

    Args:
      path: file to write.
      encoder_hidden_size: features of all encoders together: 32 of Whisper, the rest of BEATs.
      llm: Hugging Face directory of the language model.
      config: `model` section of the stored configuration.
      target_modules: linear layers of the language model with LoRA adapters.
      hidden_size: hidden size of the Q-Former.
      num_attention_heads: attention heads of the Q-Former.
      num_hidden_layers: layers of the Q-Former.

    Returns:
      `path`.
    """
    import torch
    import transformers

    from salmonn_jax.conversion.formats import tensors

    torch.manual_seed(3)
    llm_config, llm_tensors = tensors.open_hf_directory(llm)
    qformer = transformers.Blip2QFormerModel(
        transformers.Blip2QFormerConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=2 * hidden_size,
            cross_attention_frequency=1,
            encoder_hidden_size=encoder_hidden_size,
        )
    )
    _randomize_weights(qformer)
    model = {"speech_query_tokens": torch.randn(1, config["num_speech_query_token"], hidden_size)}
    for name, value in qformer.state_dict().items():
        name = name.replace(".attention.query", ".self.query").replace(".attention.key", ".self.key")
        name = name.replace(".attention.value", ".self.value").replace("layernorm.", "embeddings.LayerNorm.")
        model[f"speech_Qformer.bert.{name}"] = value
    model["speech_Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    sizes = {"ln_speech": 32, "ln_audio": encoder_hidden_size - 32}
    for name, size in sizes.items():
        if size:
            model |= {f"{name}.weight": 1 + 0.1 * torch.randn(size), f"{name}.bias": 0.1 * torch.randn(size)}
    model["speech_llama_proj.weight"] = 0.1 * torch.randn(llm_config["hidden_size"], hidden_size)
    model["speech_llama_proj.bias"] = 0.1 * torch.randn(llm_config["hidden_size"])
    for name, tensor in llm_tensors.items():
        if name.endswith(".weight") and name.split(".")[-2] in target_modules:
            prefix = "llama_model.base_model.model." + name.removesuffix(".weight")
            outputs, inputs = tensor.shape
            model[f"{prefix}.lora_A.default.weight"] = 0.2 * torch.randn(config["lora_rank"], inputs)
            model[f"{prefix}.lora_B.default.weight"] = 0.2 * torch.randn(outputs, config["lora_rank"])
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}
    torch.save({"model": model, "optimizer": optimizer, "config": {"model": config}, "epoch": 1}, path)
    return path


def _randomize_weights(model: Any) -> None:
    """Sets random weights, scaled so that every component of a model has an effect on its output."""
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                torch.nn.init.normal_(value, std=0.5 / value[0].numel() ** 0.5)
            elif "bias" in name:
                torch.nn.init.normal_(value, std=0.1)
            else:
                torch.nn.init.normal_(value, mean=1.0, std=0.1)
