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
from salmonn_jax.batch import Batch
from salmonn_jax.decoding import greedy
from salmonn_jax.errors import UserError
from salmonn_jax.models.salmonn import Salmonn, answer_losses
from salmonn_jax.prompts import TEXT, encode_answer, encode_prompt

PREFIX = "<Speech><SpeechHere></Speech> "
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
        self._model: Salmonn = loaded.structure.merge(
            {path: value.astype(loaded.config.frozen_dtype) for path, value in loaded.params.items()}
        )

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
        rows = [self._prompt(clip, prompt) for clip, prompt in zip(clips, self._each(clips, prompts), strict=True)]
        width = -(-max(len(row.tokens) for row in rows) // BUCKET) * BUCKET
        tokens, slots = self._padded(rows, width)
        pcm, length = self._clips(clips)
        ready = greedy.Prompts(pcm, length, tokens, slots, np.array([len(row.tokens) for row in rows], np.int32))
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
        encoded = self._encode(self._model, *self._clips(clips))
        return np.asarray(encoded.astype(jnp.float32))

    def score(self, clips: Sequence[Clip], prompts: str | Sequence[str], answers: Sequence[str]) -> list[np.ndarray]:
        """Log-probabilities float32[answer tokens] of given answers, teacher forced, `</s>` included."""
        rows = []
        for clip, prompt, answer in zip(clips, self._each(clips, prompts), answers, strict=True):
            row = self._prompt(clip, prompt)
            ids = encode_answer(self.tokenizer, answer, limit=self.config.llama.context)
            rows.append((row, ids))
        width = max(len(row.tokens) + len(ids) for row, ids in rows)
        joined = [type(row)(row.tokens + ids, row.slots + [TEXT] * len(ids)) for row, ids in rows]
        tokens, slots = self._padded(joined, width)
        place = np.arange(width, dtype=np.int32)
        start = np.array([[len(row.tokens)] for row, _ in rows])
        end = np.array([[len(row.tokens)] for row in joined])
        pcm, length = self._clips(clips)
        shape = np.broadcast_shapes(place.shape, start.shape)
        batch = Batch(
            pcm,
            length,
            tokens,
            np.broadcast_to(place, shape),
            (place < end).astype(np.int32),
            (place >= start) & (place < end),
            slots,
            np.zeros(len(rows), np.int32),
            np.zeros((len(pcm), 0), np.int32),
        )
        losses = np.asarray(self._losses(self._model, batch))
        return [
            -losses[i, first - 1 : last - 1] for i, (first, last) in enumerate(zip(start[:, 0], end[:, 0], strict=True))
        ]

    def _prompt(self, clip: Clip, prompt: str):
        if clip is not None and "<SpeechHere>" not in prompt:
            prompt = PREFIX + prompt
        return encode_prompt(
            self.tokenizer,
            self.config.prompt_template,
            prompt,
            clips=int(clip is not None),
            audio_tokens=self.config.audio_tokens,
        )

    def _each(self, clips: Sequence[Clip], prompts: str | Sequence[str]) -> Sequence[str]:
        prompts = [prompts] * len(clips) if isinstance(prompts, str) else prompts
        if len(prompts) != len(clips):
            raise UserError(f"{len(prompts)} prompts for {len(clips)} clips; give one for all, or one each")
        return prompts

    def _clips(self, clips: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray]:
        heard = [clip for clip in clips if clip is not None]
        window = self.config.audio.window_samples
        pcm, length = np.zeros((len(heard), window), np.int16), np.zeros(len(heard), np.int32)
        for i, clip in enumerate(heard):
            length[i] = min(len(clip), window)
            pcm[i, : length[i]] = clip[:window]
        return pcm, length

    def _padded(self, rows, width: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, slots = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), TEXT, np.int32)
        clip = 0
        for i, row in enumerate(rows):
            placed = np.asarray(row.slots)
            tokens[i, : len(row.tokens)] = row.tokens
            slots[i, : len(row.slots)] = np.where(placed == TEXT, TEXT, placed + clip * self.config.audio_tokens)
            clip += int((placed != TEXT).any())
        return tokens, slots

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
        scale = self.config.lora.scale
        return jax.jit(lambda model, batch: answer_losses(model(batch, lora_scale=scale)[0], batch)[0])


def load(directory: str | pathlib.Path) -> Model:
    """Loads a model directory, or the latest checkpoint of a run directory. Raises UserError if it is neither."""
    return Model(model_directory.load_model(pathlib.Path(directory)))
