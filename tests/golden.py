"""Golden sets: small SALMONNs in the original's file formats, and what the original PyTorch code computes with them.

`MINI` is part of the repository. `TINY` lies beside it (`SALMONN_SHARED`), has wider models and real recordings, and is
an additional check. The README.md of `MINI` lists the stored arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from jax import Array

from salmonn_jax.batch import Batch, empty_batch
from salmonn_jax.config import BeatsConfig, LlamaConfig, ModelConfig, QFormerConfig, WhisperConfig
from salmonn_jax.conversion import mapping, tables, to_jax
from salmonn_jax.conversion.mapping import LazyParam
from salmonn_jax.conversion.settings.options import SalmonnOptions
from salmonn_jax.models import parameters
from salmonn_jax.models.encoder import EncoderOutput
from salmonn_jax.models.salmonn import Salmonn, answer_losses

SHARED = pathlib.Path(os.environ.get("SALMONN_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
NUM_CLIPS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class GoldenSet:
    """Weights, clips and expected results of one small SALMONN.

    Attributes:
      directory: holds `whisper/`, `beats.pt`, `vicuna/`, `salmonn.pth`, `expected.npz` and `expected.json`.
      clips_dir: holds the three clips.
      config: configuration of the model.
      pad_id: the class that the original adds to the vocabulary, [PAD].
    """

    directory: pathlib.Path
    clips_dir: pathlib.Path
    config: ModelConfig
    pad_id: int

    def require(self) -> None:
        """Skips the calling test if the set is absent, which `MINI` never is, or if torch is not installed.

        Under CI a missing torch fails the test.
        """
        if not self.directory.exists():
            pytest.skip(f"there is no {self.directory} (set SALMONN_SHARED)")
        require(self.directory)

    @functools.cached_property
    def expected(self) -> dict[str, np.ndarray]:
        """Arrays that the original computes, by name."""
        return dict(np.load(self.directory / "expected.npz"))

    @functools.cached_property
    def expected_json(self) -> dict:
        """Prompts, texts, token ids, generations and settings."""
        return json.loads((self.directory / "expected.json").read_text())

    @functools.cached_property
    def clips(self) -> tuple[np.ndarray, np.ndarray]:
        """The clips as int16[3,480000] (first channel, cut to 30 s), and their lengths int32[3]."""
        pcm, lengths = np.zeros((NUM_CLIPS, 480_000), np.int16), []
        for clip in range(NUM_CLIPS):
            samples, rate = soundfile.read(self.clip_path(clip), dtype="int16", always_2d=True)
            assert rate == 16_000
            samples = samples[:480_000, 0]
            pcm[clip, : len(samples)] = samples
            lengths.append(len(samples))
        return pcm, np.array(lengths, np.int32)

    def clip_path(self, clip: int) -> pathlib.Path:
        """Returns the audio file of a clip."""
        return self.clips_dir / self.expected_json["wavs"][clip]

    @functools.cached_property
    def params(self) -> parameters.Params:
        """Every weight of the model by our paths, in float32."""
        plan = to_jax.plan_salmonn(
            self.directory / "whisper",
            self.directory / "beats.pt",
            self.directory / "vicuna",
            self.directory / "salmonn.pth",
            SalmonnOptions(qformer_num_attention_heads=4),
        )
        return jax.device_put({path: full_array(p).astype(np.float32) for path, p in (plan.base | plan.delta).items()})

    @functools.cached_property
    def params_with_pad(self) -> parameters.Params:
        """The weights with the rows of [PAD], which the original draws at random and stores in no checkpoint.

        If the set does not store these rows, the weights are as in `params`.
        """
        if not self.stores_pad:
            return self.params
        embedding, kernel = self.params["llama/embedding"], self.params["llama/lm_head/kernel"]
        return self.params | {
            "llama/embedding": jnp.concatenate([embedding, self.expected["pad_embedding"][None]]),
            "llama/lm_head/kernel": jnp.concatenate([kernel, self.expected["pad_lm_head"][:, None]], axis=1),
        }

    @property
    def stores_pad(self) -> bool:
        """True if the set stores the rows of [PAD]."""
        return "pad_embedding" in self.expected

    @property
    def pad_classes(self) -> int:
        """Classes with a logit of zero in the loss: stand-ins for [PAD] if its row is unknown."""
        return 0 if self.stores_pad else 1

    @functools.cached_property
    def structure(self) -> parameters.ModelStructure:
        """The model without its weights."""
        return parameters.model_structure(self.config)

    @functools.cached_property
    def model(self) -> Salmonn:
        """The model as it is converted, without [PAD]."""
        return self.structure.merge(self.params)

    @functools.cached_property
    def model_with_pad(self) -> Salmonn:
        """The model with the rows of [PAD], if the set stores them."""
        return self.structure.merge(self.params_with_pad)

    @functools.cached_property
    def frames_alone(self) -> dict[str, EncoderOutput]:
        """The encoders' outputs of each clip alone."""
        return self._encode(self.clips[1])

    @functools.cached_property
    def frames_padded(self) -> dict[str, EncoderOutput]:
        """The encoders' frames of the batch of all clips, padded to the longest as the original pads for BEATs."""
        return self._encode(np.full(NUM_CLIPS, self.clips[1].max()))

    def _encode(self, padded_length: np.ndarray) -> dict[str, EncoderOutput]:
        return run_encoders(self.model, *self.clips, padded_length.astype(np.int32))

    def batch_frames(self, clips: Sequence[int]) -> dict[str, EncoderOutput]:
        """Returns the frames of a batch of these clips in three rows; rows beyond the batch hold unused frames."""
        lengths, longest = self.clips[1], self.clips[1][clips].max()
        frames = self.frames_padded if longest == lengths.max() else self._encode(np.maximum(lengths, longest))
        rows = np.resize(clips, NUM_CLIPS)
        return jax.tree.map(lambda x: x[rows], frames)

    def padded_batch(self, clips: Sequence[int]) -> Batch:
        """Returns a batch of these clips as the original pads it: answers begin behind the longest prompt.

        There are always three rows of one width, so that all batches share a compiled function. Rows beyond the batch
        are empty.
        """
        return self._batch(clips, [max(self._prompt_length(clip) for clip in clips)] * len(clips))

    def unpadded_batch(self) -> Batch:
        """Returns a batch in which every row is what the original computes for that clip alone."""
        clips = range(NUM_CLIPS)
        return self._batch(clips, [self._prompt_length(clip) for clip in clips])

    def _prompt_length(self, clip: int) -> int:
        ids = self.expected_json["token_ids"][clip]
        return 1 + len(ids["before"]) + self.config.num_audio_tokens + len(ids["after"])

    def _batch(self, clips: Sequence[int], answer_starts: Sequence[int]) -> Batch:
        longest_answer = max(len(ids["target"]) for ids in self.expected_json["token_ids"])
        width = max(self._prompt_length(clip) for clip in range(NUM_CLIPS)) + longest_answer
        batch = empty_batch(NUM_CLIPS, width, 0, 0, 0)
        batch.tokens[:], batch.positions[:] = self.pad_id, np.arange(width)
        for row, (clip, answer_start) in enumerate(zip(clips, answer_starts, strict=True)):
            ids, prompt_length = self.expected_json["token_ids"][clip], self._prompt_length(clip)
            answer = slice(answer_start, answer_start + len(ids["target"]))
            audio_start, audio_end = 1 + len(ids["before"]), prompt_length - len(ids["after"])
            batch.tokens[row, :audio_start] = [1, *ids["before"]]
            batch.audio_slot[row, audio_start:audio_end] = np.arange(audio_end - audio_start) + row * (
                self.config.num_audio_tokens
            )
            batch.tokens[row, audio_end:prompt_length] = ids["after"]
            batch.tokens[row, answer], batch.loss_mask[row, answer] = ids["target"], True
            batch.segments[row, :prompt_length] = batch.segments[row, answer] = 1
        return batch

    def loss_without_pad_row(self, clip: int) -> float:
        """Returns the original's loss of a clip if the logit of [PAD] were zero, as it is in a converted model."""
        batch, logits = self.unpadded_batch(), self.expected[f"logits_{clip}"].astype(np.float64)
        logits[:, self.pad_id] = 0
        targets = np.flatnonzero(batch.loss_mask[clip])
        chosen = logits[targets - 1, batch.tokens[clip, targets]]
        return float((np.log(np.exp(logits[targets - 1]).sum(axis=1)) - chosen).mean())


@jax.jit
def run_encoders(model: Salmonn, pcm: Array, pcm_length: Array, padded_length: Array) -> dict[str, EncoderOutput]:
    """Runs both encoders (see `Salmonn.run_encoders`)."""
    return model.run_encoders(pcm, pcm_length, padded_length)


def forward(
    model: Salmonn, frames: dict[str, EncoderOutput], batch: Batch, lora_scale: Array | float, pad_classes: int
) -> tuple[Array, Array, Array, Array]:
    """Runs the model on the encoders' frames, without dropout.

    As in the original, padding between prompt and answer is not attended to, but attends: in a row with a shorter
    prompt, the first answer token is predicted from a [PAD].

    Returns:
      Audio tokens float[A,T,D], logits float[R,S,V], and losses and counted tokens as in `answer_losses`.
    """
    audio_tokens = model.compute_audio_tokens(frames)
    x = model.merge_audio_tokens(batch.tokens, batch.audio_slot, audio_tokens)
    width = batch.tokens.shape[1]
    mask = jnp.tril(jnp.ones((width, width), bool)) & (batch.segments[:, None, :] > 0)
    hidden = model.llama(x, batch.positions, mask, lora_scale=lora_scale)
    logits = model.llama.logits(hidden)
    return audio_tokens, logits, *answer_losses(logits, batch, pad_classes)


def original_tensors(params: parameters.Params, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns trainable parameters, or their gradients, under the original's names and in its shapes."""
    found = mapping.destinations(tables.SALMONN, {path: value.shape for path, value in params.items()})
    tensors = {}
    for name in names:
        to = found[name]
        value = np.asarray(params[to.path])
        tensors[name] = to.transform.to_torch(value if to.layer is None else value[to.layer])
    return tensors


def relative_error(ours: Array, theirs: np.ndarray) -> float:
    """Returns the norm of the difference over the norm of `theirs`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def other_sets() -> list[GoldenSet]:
    """Returns the golden sets in the directories of SALMONN_GOLDEN, which hold their clips in `audio/`."""
    sets = []
    for directory in map(pathlib.Path, filter(None, os.environ.get("SALMONN_GOLDEN", "").split(":"))):
        plan = to_jax.plan_salmonn(
            *(directory / name for name in ("whisper", "beats.pt", "vicuna", "salmonn.pth")),
            SalmonnOptions(qformer_num_attention_heads=4),
        )
        pad_id = json.loads((directory / "expected.json").read_text())["pad_id"]
        sets.append(GoldenSet(directory, directory / "audio", plan.config, pad_id))
    return sets


def full_array(parameter: LazyParam) -> np.ndarray:
    """Reads all of a parameter that is about to be converted."""
    pieces = [piece for _, piece in parameter.pieces()]
    return np.stack(pieces) if parameter.stacked else pieces[0]


def require(path: pathlib.Path) -> None:
    """Skips the calling test if `path` is absent or torch is not installed; fails it under CI."""
    reason = None
    if not path.exists():
        reason = f"there is no {path} (set SALMONN_SHARED)"
    else:
        try:
            import torch  # noqa: F401
        except ImportError:
            reason = "torch is not installed, and the golden weights are torch files"
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


MINI = GoldenSet(
    directory=pathlib.Path(__file__).parent / "salmonn_mini_golden",
    clips_dir=pathlib.Path(__file__).parent / "salmonn_mini_golden" / "audio",
    config=ModelConfig(
        whisper=WhisperConfig(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64),
        beats=BeatsConfig(
            embed_dim=16, encoder_embed_dim=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_embed_dim=64
        ),
        qformer=QFormerConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64),
        llama=LlamaConfig(
            vocab_size=400,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=96,
            max_position_embeddings=512,
        ),
    ),
    pad_id=400,
)

TINY = GoldenSet(
    directory=SHARED / "golden" / "salmonn_tiny",
    clips_dir=SHARED / "audio",
    config=ModelConfig(
        whisper=WhisperConfig(d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128),
        beats=BeatsConfig(
            embed_dim=32, encoder_embed_dim=48, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_embed_dim=96
        ),
        qformer=QFormerConfig(hidden_size=48, num_attention_heads=4, intermediate_size=96),
        llama=LlamaConfig(
            vocab_size=640,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=172,
            max_position_embeddings=512,
        ),
    ),
    pad_id=640,
)
