"""What PyTorch computes with the original files: the other side of `compare`.

The original's own code cannot be installed, so the model is put together from packages: transformers has Whisper, the
LLaMA family, BLIP-2's Q-Former and a Kaldi filter bank, peft the adapters, openbeats the BEATs
encoder, openai-whisper Whisper under its other names.
Nothing here passes through our tables: files are opened by the packages, or by torch with their own names.

Every function returns what is computed on the way, by the names that `compare` gives to ours, as float32 arrays without
a batch axis, in the order of computation.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from salmonn_jax.config import SAMPLE_RATE, ModelConfig
from salmonn_jax.conversion import tensors
from salmonn_jax.errors import UserError, import_optional

Activations = dict[str, np.ndarray]


def whisper_activations(path: pathlib.Path, pcm: np.ndarray) -> Activations:
    """Whisper's encoder on int16[samples]: features float[M,2T], layers and output float[T,D]."""
    import torch

    heard, encoder, layers = (_hf_whisper if pathlib.Path(path).is_dir() else _openai_whisper)(path, pcm / 32768.0)
    with torch.no_grad(), _record_hidden_states(layers, "whisper") as kept:
        output = encoder(heard[None])
    output = output if isinstance(output, torch.Tensor) else output.last_hidden_state
    return {"whisper features": heard.numpy(), **kept, "whisper output": output[0].numpy()}


def _hf_whisper(path: pathlib.Path, samples: np.ndarray) -> tuple[Any, Any, Any]:
    """Features, encoder and its layers, by transformers."""
    import torch

    transformers = _import_package("transformers")
    model = transformers.WhisperModel.from_pretrained(path, dtype=torch.float32).encoder.eval()
    extractor = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    heard = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
    return heard.float(), model, model.layers


def _openai_whisper(path: pathlib.Path, samples: np.ndarray) -> tuple[Any, Any, Any]:
    """The same by OpenAI's package, which alone opens its files."""
    whisper = _import_package("whisper")
    loaded = tensors.load_torch(path)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**loaded["dims"]))
    model.load_state_dict(loaded["model_state_dict"])
    padded = whisper.audio.pad_or_trim(samples.astype(np.float32))
    heard = whisper.audio.log_mel_spectrogram(padded, n_mels=loaded["dims"]["n_mels"])
    return heard, model.encoder.eval().float(), model.encoder.blocks


def beats_activations(path: pathlib.Path, pcm: np.ndarray) -> Activations:
    """BEATs on int16[samples], alone and not padded: features float[frames,M], layers float[T,D]."""
    import torch

    fbank = _kaldi_fbank(pcm)
    with stub_torchaudio():
        encoder = _import_package("openbeats.beats_encoder")
    loaded = tensors.load_torch(path)
    model = encoder.BeatsEncoder(input_size=1, beats_config=loaded["cfg"]).eval()
    left = model.load_state_dict(loaded["model"], strict=False)
    ours = [name for name in left.missing_keys if not name.startswith(("patch_embedding_pad", "raw2fbank_pad"))]
    if ours:
        raise UserError(f"openbeats finds no {ours[0]} in {path}")
    with torch.no_grad(), _record_hidden_states(model.encoder.layers, "beats", batch_second=True) as kept:
        output = model.extract_features(torch.from_numpy(fbank)[None], skip_fbank_extraction=True)[0][0]
    features = (fbank - model.fbank_mean) / (2 * model.fbank_std)
    return {"beats features": features, **kept, "beats output": output.numpy()}


def qformer_activations(
    path: pathlib.Path, config: ModelConfig, whisper_output: np.ndarray, beats_output: np.ndarray | None
) -> Activations:
    """From the encoders' outputs float[T,D] to audio tokens float[W*Q,D], with the weights of a SALMONN `.pth`."""
    import torch

    transformers = _import_package("transformers")
    trained = tensors.load_torch(path)["model"]
    q = config.qformer
    heard = _layer_norm(torch.from_numpy(whisper_output), trained, "ln_speech")
    if beats_output is not None:
        other = _layer_norm(torch.from_numpy(beats_output), trained, "ln_audio")[: len(heard)]
        other = torch.nn.functional.pad(other, (0, 0, 0, len(heard) - len(other)))
        heard = torch.cat([heard, other], dim=-1)
    windows = heard.unfold(0, q.window_frames, q.stride_frames).transpose(1, 2)  # [W,window,D]
    model = transformers.Blip2QFormerModel(
        transformers.Blip2QFormerConfig(
            hidden_size=q.hidden_size,
            num_hidden_layers=q.num_hidden_layers,
            num_attention_heads=q.num_attention_heads,
            intermediate_size=q.intermediate_size,
            encoder_hidden_size=heard.shape[-1],
            cross_attention_frequency=1,
        )
    ).eval()
    model.load_state_dict(_blip2_state_dict(trained))
    queries = trained["speech_query_tokens"].expand(len(windows), -1, -1)
    with torch.no_grad(), _record_hidden_states(model.encoder.layer, "qformer", keep_batch=True) as kept:
        read = model(query_embeds=queries, encoder_hidden_states=windows).last_hidden_state
        weight, bias = trained["speech_llama_proj.weight"], trained["speech_llama_proj.bias"]
        tokens = torch.nn.functional.linear(read, weight, bias).flatten(0, 1)
    return {"encoder frames": heard.numpy(), **kept, "audio tokens": tokens.numpy()}


def llama_activations(
    path: pathlib.Path,
    tokens: np.ndarray,
    audio_slots: np.ndarray,
    audio_tokens: np.ndarray | None,
    checkpoint: pathlib.Path | None,
    config: ModelConfig,
) -> Activations:
    """The language model on one question: layers float[S,D] and logits float[S,V].

    Args:
      path: Hugging Face directory.
      tokens, slots: int[S], as in `salmonn_jax.prompts.Sequence`.
      audio_tokens: float[W*Q,D] that stand where `slots` says.
      checkpoint: a SALMONN `.pth`, whose adapters are laid over the model; None leaves it as it is.
      config: with the rank and alpha of the adapters.
    """
    import torch

    transformers = _import_package("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    layers, embed = model.model.layers, model.get_input_embeddings()
    if checkpoint is not None and config.lora.target_modules:
        model = _with_adapters(model, checkpoint, config).eval()
    with torch.no_grad(), _record_hidden_states(layers, "llama") as kept:
        x = embed(torch.from_numpy(tokens))
        if audio_tokens is not None:
            heard = torch.from_numpy(audio_tokens[np.maximum(audio_slots, 0)])
            x = torch.where(torch.from_numpy(audio_slots >= 0)[:, None], heard, x)
        logits = model(inputs_embeds=x[None]).logits[0]
    return {**kept, "logits": logits[:, : config.llama.vocab_size].numpy()}


def _with_adapters(model: Any, checkpoint: pathlib.Path, config: ModelConfig) -> Any:
    peft = _import_package("peft")
    lora = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=list(config.lora.target_modules),
        lora_dropout=0.0,
    )
    model = peft.get_peft_model(model, lora)
    found = tensors.load_torch(checkpoint)["model"]
    adapters = {name.removeprefix("llama_model."): value for name, value in found.items() if ".lora_" in name}
    left = model.load_state_dict(adapters, strict=False)
    absent = [name for name in left.missing_keys if ".lora_" in name]
    if absent or left.unexpected_keys:
        raise UserError(f"peft does not know the adapters of {checkpoint}: {(absent + left.unexpected_keys)[0]}")
    return model


def _layer_norm(x: Any, trained: dict[str, Any], name: str) -> Any:
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], trained[f"{name}.weight"], trained[f"{name}.bias"])


def _blip2_state_dict(trained: dict[str, Any]) -> dict[str, Any]:
    """The Q-Former's weights under the names of transformers' BLIP-2, from which the original took it."""
    prefix = "speech_Qformer.bert."
    found = {}
    for name, value in trained.items():
        if name.startswith(prefix) and not name.endswith("position_ids"):
            name = name.removeprefix(prefix).replace("embeddings.LayerNorm", "layernorm")
            found[name.replace(".self.", ".attention.")] = value
    return found


@contextlib.contextmanager
def _record_hidden_states(
    layers: Any, name: str, *, batch_second: bool = False, keep_batch: bool = False
) -> Iterator[Activations]:
    """While it lasts, keeps what enters the first of `layers` and what leaves each, under `name layer i`.

    `swapped`: the batch is the second axis. `batched`: the batch is windows, and is kept.
    """
    kept: Activations = {}

    def keep(index: int, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        value = value.transpose(0, 1) if batch_second else value
        kept[f"{name} layer {index}"] = (value if keep_batch else value[0]).float().numpy().copy()

    def before(module, args, kwargs):
        keep(0, args[0] if args else next(iter(kwargs.values())))

    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    for i, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(lambda module, args, output, i=i: keep(i + 1, output)))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _kaldi_fbank(pcm: np.ndarray) -> np.ndarray:
    """Kaldi's 128-bin log filter bank float32[frames,128] of int16[samples]."""
    utilities = _import_package("transformers.audio_utils")
    filters = utilities.mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=128,
        min_frequency=20.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return utilities.spectrogram(
        pcm.astype(np.float64),
        utilities.window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=float(np.finfo(np.float32).eps),
        remove_dc_offset=True,
    ).T.astype(np.float32)


@contextlib.contextmanager
def stub_torchaudio() -> Iterator[None]:
    """openbeats imports torchaudio for a filter bank that is not asked of it; a stand-in does where it is absent."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        names = ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi")
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        try:
            yield
        finally:
            for name in names:
                del sys.modules[name]
    else:
        yield


def _import_package(name: str) -> Any:
    found = import_optional(name, "compare")
    if name == "transformers":
        found.utils.logging.disable_progress_bar()
    return found
