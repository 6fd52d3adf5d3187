"""The Python interface: `salmonn_jax.load(directory)`."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from salmonn_jax import model_directory
from salmonn_jax.batch import Batch, Row, collate
from salmonn_jax.decoding import greedy
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.salmonn import Salmonn, answer_losses
from salmonn_jax.prompts import PLACEHOLDER, TEXT, encode_answer, encode_prompt

PREFIX = f"<Speech>{PLACEHOLDER}</Speech> "
BUCKET = 32  # prompts are padded to a multiple of this, so that few shapes are compiled

Clip = np.ndarray | None  # int16[samples] at 16 kHz; None for a question without a clip


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer."""

    text: str
    token_ids: list[int]  # `</s>` included if the answer ended by itself
    score: float  # sum of the log-probabilities of the tokens
    finish_reason: str  # "stop", or "length" when max_new_tokens ran out


class Model:
    """A loaded model. Clips are int16[samples] arrays at 16 kHz; `data_pipelines.audio_files` reads files."""

    def __init__(self, loaded: model_directory.LoadedModel):
        self.config, self.tokenizer, self.fingerprint = loaded.config, loaded.tokenizer, loaded.fingerprint
        frozen = {path: x for path, x in loaded.params.items() if path not in loaded.delta_paths}
        frozen = {path: x.astype(loaded.config.frozen_dtype) for path, x in frozen.items()}
        self._model: Salmonn = loaded.structure.merge(loaded.params | frozen)

    def generate(
        self, clips: Sequence[Clip], prompts: str | Sequence[str], *, max_new_tokens: int = 200
    ) -> list[Generation]:
        """Answers each question greedily.

        Args:
          clips: a clip (or None) per question.
          prompts: one for all clips, or one each; `<Speech><SpeechHere></Speech> ` is put in front of a prompt for a
            clip that does not say where the clip stands.
          max_new_tokens: at most so many tokens an answer.

        Raises:
          UserError: not as many prompts as clips.
        """
        rows = self._rows(clips, prompts)
        width = -(-max(len(row.tokens) for row in rows) // BUCKET) * BUCKET
        batch = self._collate(rows, width)
        length = np.array([row.prompt for row in rows], np.int32)
        ready = greedy.Prompts(batch.pcm, batch.pcm_length, batch.tokens, batch.audio_slot, length)
        decoded = jax.device_get(self._generate(self._model, ready, max_new_tokens))
        return [
            Generation(
                text=self.tokenizer.decode(ids := decoded.tokens[i, : decoded.length[i]].tolist()),
                token_ids=ids,
                score=float(decoded.score[i]),
                finish_reason="stop" if decoded.finished[i] else "length",
            )
            for i in range(len(rows))
        ]

    def encode_audio(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """The audio tokens of clips: float32[clips, audio tokens, D]."""
        batch = self._collate([Row([], [], 0, clip) for clip in clips], 0)
        return np.asarray(self._encode(self._model, batch.pcm, batch.pcm_length).astype(jnp.float32))

    def score(self, clips: Sequence[Clip], prompts: str | Sequence[str], answers: Sequence[str]) -> list[np.ndarray]:
        """Log-probabilities float32[answer tokens] of given answers, teacher forced, `</s>` included."""
        rows = []
        for row, answer in zip(self._rows(clips, prompts), answers, strict=True):
            ids = encode_answer(self.tokenizer, answer, limit=self.config.llama.context)
            rows.append(row._replace(tokens=row.tokens + ids, slots=row.slots + [TEXT] * len(ids)))
        width = max(len(row.tokens) for row in rows)
        losses = np.asarray(self._losses(self._model, self._collate(rows, width)))
        return [-losses[i, row.prompt - 1 : len(row.tokens) - 1] for i, row in enumerate(rows)]

    def _rows(self, clips: Sequence[Clip], prompts: str | Sequence[str]) -> list[Row]:
        """Questions as rows, up to where their answers begin."""
        prompts = [prompts] * len(clips) if isinstance(prompts, str) else prompts
        if len(prompts) != len(clips):
            raise UserError(f"{len(prompts)} prompts for {len(clips)} clips; give one for all, or one each")
        rows = []
        for clip, prompt in zip(clips, prompts, strict=True):
            if clip is not None and PLACEHOLDER not in prompt:
                prompt = PREFIX + prompt
            laid = encode_prompt(
                self.tokenizer,
                self.config.prompt_template,
                prompt,
                clips=int(clip is not None),
                audio_tokens=self.config.audio_tokens,
            )
            rows.append(Row(laid.tokens, laid.slots, len(laid.tokens), clip))
        return rows

    def _collate(self, rows: Sequence[Row], width: int) -> Batch:
        window, audio_tokens = self.config.audio.window_samples, self.config.audio_tokens
        return collate(rows, sequence=width, window=window, audio_tokens=audio_tokens)

    @functools.cached_property
    def _generate(self):
        options = {"end": self.tokenizer.eos, "lora_scale": self.config.lora.scale}
        return jax.jit(
            lambda model, prompts, limit: greedy.generate(model, prompts, max_new_tokens=limit, **options),
            static_argnums=2,
        )

    @functools.cached_property
    def _encode(self):
        return jax.jit(lambda model, pcm, length: model.encode_audio(pcm, length))

    @functools.cached_property
    def _losses(self):
        scale, pad = self.config.lora.scale, self.config.pad_classes
        return jax.jit(lambda model, batch: answer_losses(model(batch, lora_scale=scale)[0], batch, pad)[0])


def load(directory: str | pathlib.Path, *, dtype: str | None = None) -> Model:
    """Loads a model directory, or the latest checkpoint of a run directory.

    Args:
      directory: of the model or run.
      dtype: of activations and frozen weights, such as "bfloat16". By default what the model's configuration says on
        accelerators, and "float32" on CPUs, which have no faster one.

    Raises:
      UserError: it is neither a model nor a run directory.
    """
    loaded = model_directory.load_model(pathlib.Path(directory))
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
    if dtype is None:
        return Model(loaded)
    config = dataclasses.replace(loaded.config, activation_dtype=dtype, frozen_dtype=dtype)
    return Model(dataclasses.replace(loaded, config=config, structure=parameters.structure(config)))
