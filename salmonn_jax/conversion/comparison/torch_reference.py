"""Reference activations that PyTorch packages compute from the original checkpoints, used by `compare`.

The original's code cannot be installed as a package, so the model is assembled from others: transformers has Whisper,
the LLaMA family, BLIP-2's Q-Former and a Kaldi filter bank; peft has the adapters; openbeats has the BEATs encoder;
openai-whisper opens OpenAI's Whisper files. No conversion table is used: the packages open the files, or torch loads
them by their own tensor names.

Every public function returns float32 activations without a batch axis, by layer name, in the order of computation. The
layer names are those of `compare`.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from salmonn_jax.config import HOP_LENGTH, SAMPLE_RATE, ModelConfig
from salmonn_jax.conversion.formats import tensors
from salmonn_jax.errors import UserError, import_optional

Activations = dict[str, np.ndarray]


def whisper_activations(path: pathlib.Path, pcm: np.ndarray, num_frames: int) -> Activations:
    """Runs the Whisper encoder.

    Args:
      path: Hugging Face directory or OpenAI `.pt` file.
      pcm: int16[samples] at 16 kHz.
      num_frames: T, the encoder frames of a window; the position table is cut to them.

    Returns:
      Features float32[M,2T], layers and output float32[T,D].
    """
    import torch

    load = _hf_whisper if pathlib.Path(path).is_dir() else _openai_whisper
    features, encoder, layers = load(path, pcm / 32768.0, num_frames)
    with torch.no_grad(), _record_hidden_states(layers, "whisper") as hidden_states:
        output = encoder(features[None])
    output = output if isinstance(output, torch.Tensor) else output.last_hidden_state
    return {"whisper features": features.numpy(), **hidden_states, "whisper output": output[0].numpy()}


def _hf_whisper(path: pathlib.Path, samples: np.ndarray, num_frames: int) -> tuple[Any, Any, Any]:
    """Returns features, encoder and encoder layers, computed and loaded with transformers."""
    import torch

    transformers = _import_package("transformers")
    model = transformers.WhisperModel.from_pretrained(path, dtype=torch.float32).encoder.eval()
    model.embed_positions = torch.nn.Embedding.from_pretrained(model.embed_positions.weight[:num_frames])
    model.config.max_source_positions = num_frames
    extractor = transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    extractor.n_samples = num_frames * 2 * HOP_LENGTH
    features = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0]
    return features.float(), model, model.layers


def _openai_whisper(path: pathlib.Path, samples: np.ndarray, num_frames: int) -> tuple[Any, Any, Any]:
    """Returns features, encoder and encoder layers, computed and loaded with openai-whisper."""
    whisper = _import_package("whisper")
    checkpoint = tensors.load_torch(path)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**checkpoint["dims"]))
    model.load_state_dict(checkpoint["model_state_dict"])
    model.encoder.positional_embedding = model.encoder.positional_embedding[:num_frames]
    padded = whisper.audio.pad_or_trim(samples.astype(np.float32), num_frames * 2 * HOP_LENGTH)
    features = whisper.audio.log_mel_spectrogram(padded, n_mels=checkpoint["dims"]["n_mels"])
    return features, model.encoder.eval().float(), model.encoder.blocks


def beats_activations(path: pathlib.Path, pcm: np.ndarray) -> Activations:
    """Runs BEATs on one clip without padding.

    Args:
      path: BEATs `.pt` file.
      pcm: int16[samples] at 16 kHz.

    Returns:
      Features float32[frames,M], layers and output float32[T,D].
    """
    import torch

    fbank = _kaldi_fbank(pcm)
    with stub_torchaudio():
        encoder = _import_package("openbeats.beats_encoder")
    checkpoint = tensors.load_torch(path)
    model = encoder.BeatsEncoder(input_size=1, beats_config=checkpoint["cfg"]).eval()
    incompatible = model.load_state_dict(checkpoint["model"], strict=False)
    # openbeats adds two padding modules that a BEATs checkpoint does not have.
    own_names = ("patch_embedding_pad", "raw2fbank_pad")
    missing = [name for name in incompatible.missing_keys if not name.startswith(own_names)]
    if missing:
        raise UserError(f"openbeats finds no {missing[0]} in {path}")
    with torch.no_grad(), _record_hidden_states(model.encoder.layers, "beats", batch_second=True) as hidden_states:
        output = model.extract_features(torch.from_numpy(fbank)[None], skip_fbank_extraction=True)[0][0]
    features = (fbank - model.fbank_mean) / (2 * model.fbank_std)
    return {"beats features": features, **hidden_states, "beats output": output.numpy()}


def qformer_activations(
    path: pathlib.Path, config: ModelConfig, whisper_output: np.ndarray, beats_output: np.ndarray | None
) -> Activations:
    """Runs the window-level Q-Former and the projection of a SALMONN `.pth` on the outputs of the encoders.

    Args:
      path: SALMONN `.pth`.
      config: configuration of the converted model.
      whisper_output: float32[T,D].
      beats_output: float32[T,D], or None for a model without BEATs.

    Returns:
      Encoder frames float32[frames, hidden], layers float32[windows, queries, hidden], and audio tokens
      float32[audio_tokens, hidden].
    """
    import torch

    transformers = _import_package("transformers")
    state_dict = tensors.load_torch(path)["model"]
    qformer_config = config.qformer
    frames = _layer_norm(torch.from_numpy(whisper_output), state_dict, "ln_speech")
    if beats_output is not None:
        beats_frames = _layer_norm(torch.from_numpy(beats_output), state_dict, "ln_audio")[: len(frames)]
        beats_frames = torch.nn.functional.pad(beats_frames, (0, 0, 0, len(frames) - len(beats_frames)))
        frames = torch.cat([frames, beats_frames], dim=-1)
    windows = frames.unfold(0, qformer_config.window_frames, qformer_config.stride_frames)
    windows = windows.transpose(1, 2)  # [W,window,D]
    model = transformers.Blip2QFormerModel(
        transformers.Blip2QFormerConfig(
            hidden_size=qformer_config.hidden_size,
            num_hidden_layers=qformer_config.num_hidden_layers,
            num_attention_heads=qformer_config.num_attention_heads,
            intermediate_size=qformer_config.intermediate_size,
            encoder_hidden_size=frames.shape[-1],
            cross_attention_frequency=1,
        )
    ).eval()
    model.load_state_dict(_blip2_state_dict(state_dict))
    queries = state_dict["speech_query_tokens"].expand(len(windows), -1, -1)
    with torch.no_grad(), _record_hidden_states(model.encoder.layer, "qformer", keep_batch=True) as hidden_states:
        query_output = model(query_embeds=queries, encoder_hidden_states=windows).last_hidden_state
        weight, bias = state_dict["speech_llama_proj.weight"], state_dict["speech_llama_proj.bias"]
        audio_tokens = torch.nn.functional.linear(query_output, weight, bias).flatten(0, 1)
    return {"encoder frames": frames.numpy(), **hidden_states, "audio tokens": audio_tokens.numpy()}


def llama_activations(
    path: pathlib.Path,
    tokens: np.ndarray,
    audio_slots: np.ndarray,
    audio_tokens: np.ndarray | None,
    checkpoint: pathlib.Path | None,
    config: ModelConfig,
) -> Activations:
    """Runs the language model on one prompt.

    Args:
      path: Hugging Face directory.
      tokens: int[seq], token ids as in `salmonn_jax.prompts.EncodedPrompt`.
      audio_slots: int[seq], index of the audio token at each position, or -1 at text positions.
      audio_tokens: float32[audio_tokens, hidden] that replace the embeddings at audio positions; None for a
        prompt without audio.
      checkpoint: SALMONN `.pth` with LoRA adapters; None runs the model without adapters.
      config: configuration of the converted model; rank and alpha of the adapters are read from it.

    Returns:
      Layers float32[S,D] and logits float32[S,V].
    """
    import torch

    transformers = _import_package("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    layers, embed = model.model.layers, model.get_input_embeddings()
    if checkpoint is not None and config.lora.target_modules:
        model = _with_adapters(model, checkpoint, config).eval()
    with torch.no_grad(), _record_hidden_states(layers, "llama") as hidden_states:
        x = embed(torch.from_numpy(tokens))
        if audio_tokens is not None:
            audio_embeds = torch.from_numpy(audio_tokens[np.maximum(audio_slots, 0)])
            x = torch.where(torch.from_numpy(audio_slots >= 0)[:, None], audio_embeds, x)
        logits = model(inputs_embeds=x[None]).logits[0]
    return {**hidden_states, "logits": logits[:, : config.llama.vocab_size].numpy()}


def _with_adapters(model: Any, checkpoint: pathlib.Path, config: ModelConfig) -> Any:
    """Returns the language model with the LoRA adapters of a SALMONN `.pth`."""
    peft = _import_package("peft")
    lora = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=list(config.lora.target_modules),
        lora_dropout=0.0,
    )
    model = peft.get_peft_model(model, lora)
    state_dict = tensors.load_torch(checkpoint)["model"]
    adapters = {name.removeprefix("llama_model."): value for name, value in state_dict.items() if ".lora_" in name}
    incompatible = model.load_state_dict(adapters, strict=False)
    missing = [name for name in incompatible.missing_keys if ".lora_" in name]
    if missing or incompatible.unexpected_keys:
        mismatch = (missing + incompatible.unexpected_keys)[0]
        raise UserError(f"peft cannot load the adapters of {checkpoint}: {mismatch} is missing or unknown")
    return model


def _layer_norm(x: Any, state_dict: dict[str, Any], name: str) -> Any:
    """Applies the layer normalisation `name` of a state dict to the last axis."""
    import torch

    return torch.nn.functional.layer_norm(x, x.shape[-1:], state_dict[f"{name}.weight"], state_dict[f"{name}.bias"])


def _blip2_state_dict(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Returns the Q-Former's weights under transformers' BLIP-2 names. The original's Q-Former is that of BLIP-2."""
    prefix = "speech_Qformer.bert."
    renamed = {}
    for name, value in state_dict.items():
        if name.startswith(prefix) and not name.endswith("position_ids"):
            name = name.removeprefix(prefix).replace("embeddings.LayerNorm", "layernorm")
            renamed[name.replace(".self.", ".attention.")] = value
    return renamed


@contextlib.contextmanager
def _record_hidden_states(
    layers: Any, name: str, *, batch_second: bool = False, keep_batch: bool = False
) -> Iterator[Activations]:
    """Records the input of the first layer and the output of each layer while the context is active.

    Args:
      layers: torch modules, in order.
      name: prefix of the recorded names. The input of the first layer is "NAME layer 0".
      batch_second: the batch is the second axis of the layers' arrays.
      keep_batch: keep the batch axis, which holds the windows of the Q-Former.
    """
    hidden_states: Activations = {}

    def record(index: int, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        value = value.transpose(0, 1) if batch_second else value
        hidden_states[f"{name} layer {index}"] = (value if keep_batch else value[0]).float().numpy().copy()

    def pre_hook(module, args, kwargs):
        record(0, args[0] if args else next(iter(kwargs.values())))

    hooks = [layers[0].register_forward_pre_hook(pre_hook, with_kwargs=True)]
    for i, layer in enumerate(layers):
        hooks.append(layer.register_forward_hook(lambda module, args, output, i=i: record(i + 1, output)))
    try:
        yield hidden_states
    finally:
        for hook in hooks:
            hook.remove()


def _kaldi_fbank(pcm: np.ndarray) -> np.ndarray:
    """Returns Kaldi's log filter bank float32[frames,128] of int16[samples], computed with transformers."""
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
    """Replaces torchaudio by empty modules if it is missing. openbeats imports it for an unused filter bank."""
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
    """Imports a package of the extra `compare`. Raises UserError if it is not installed."""
    package = import_optional(name, "compare")
    if name == "transformers":
        package.utils.logging.disable_progress_bar()
    return package
