"""The Python interface: `salmonn_jax.load(directory)`."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from salmonn_jax import model_directory
from salmonn_jax.audio_files import AudioSource, load_audio
from salmonn_jax.batch import Batch, Segment, collate
from salmonn_jax.decoding import greedy
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.models.salmonn import Salmonn, answer_losses
from salmonn_jax.prompts import AUDIO_PLACEHOLDER, TEXT_SLOT, encode_answer, encode_prompt
from salmonn_jax.sharding import Placement

AUDIO_PROMPT_PREFIX = f"<Speech>{AUDIO_PLACEHOLDER}</Speech> "
PAD_TO_MULTIPLE_OF = 32  # prompts are padded to a multiple of this, so that few shapes are compiled

Audio = AudioSource | None  # see `salmonn_jax.audio_files.load_audio`; None for a question without a clip


@dataclasses.dataclass(frozen=True)
class Generation:
    """One answer."""

    text: str
    token_ids: list[int]  # `</s>` included if the answer ended by itself
    score: float  # sum of the log-probabilities of the tokens
    finish_reason: str  # "stop", or "length" when max_new_tokens ran out


class Model:
    """A loaded model. `module` is the Flax module, for what the methods do not cover.

    Audio is a path, the bytes of a file, or (samples, rate in Hz); or a list of those. Clips are heard as the original
    hears them: the first channel, at 16 kHz, up to the model's window (30 s).
    """

    def __init__(self, loaded: model_directory.LoadedModel):
        self.config, self.tokenizer, self.fingerprint = loaded.config, loaded.tokenizer, loaded.fingerprint
        self.module: Salmonn = loaded.structure.merge(loaded.params)

    def generate(
        self, audio: Audio | list[Audio], prompt: str | Sequence[str], *, num_beams: int = 1, max_new_tokens: int = 200
    ) -> list[Generation]:
        """Answers each question.

        Args:
          audio: a clip (or None) for each question.
          prompt: one for all clips, or one each; `<Speech><SpeechHere></Speech> ` is put in front of a prompt for a
            clip that does not say where the clip stands.
          num_beams: 1, which decodes greedily; there is no beam search yet.
          max_new_tokens: at most so many tokens an answer.

        Raises:
          UserError: audio that cannot be read, not as many prompts as clips, or a model without what is asked of it.
        """
        if num_beams != 1:
            raise UserError(f"num_beams={num_beams}: there is no beam search yet, only num_beams=1")
        rows = self._encode_prompts(audio, prompt)
        self._check_context(rows, max_new_tokens)
        width = -(-max(len(row.tokens) for row in rows) // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF
        batch = self._collate(rows, width)
        length = np.array([row.prompt_length for row in rows], np.int32)
        ready = greedy.PromptBatch(batch.pcm, batch.pcm_length, batch.tokens, batch.audio_slot, length)
        decoded = jax.device_get(self._generate(self.module, ready, max_new_tokens))
        return [
            Generation(
                text=self.tokenizer.decode(ids := decoded.tokens[i, : decoded.length[i]].tolist()),
                token_ids=ids,
                score=float(decoded.score[i]),
                finish_reason="stop" if decoded.finished[i] else "length",
            )
            for i in range(len(rows))
        ]

    def encode_audio(self, audio: AudioSource | list[AudioSource]) -> np.ndarray:
        """All audio tokens of clips, those that the language model does not read included: float32[clips, T, D]."""
        self._require_audio_encoder()
        batch = self._collate([Segment([], [], 0, (load_audio(clip),)) for clip in _as_list(audio)], 0)
        return np.asarray(self._encode(self.module, batch.pcm, batch.pcm_length).astype(jnp.float32))

    def score(
        self, audio: Audio | list[Audio], prompt: str | Sequence[str], answer: str | Sequence[str]
    ) -> np.ndarray | list[np.ndarray]:
        """Log-probabilities of given answers, teacher forced.

        Args:
          audio, prompt: as for `generate`.
          answer: one for a single clip, or one each.

        Returns:
          float32[answer tokens], `</s>` included; a list of them for a list of clips.
        """
        rows, answers = [], [answer] if isinstance(answer, str) else answer
        questions = self._encode_prompts(audio, prompt)
        if len(answers) != len(questions):
            raise UserError(f"{len(answers)} answers for {len(questions)} clips; give one each")
        for row, text in zip(questions, answers, strict=True):
            ids = encode_answer(self.tokenizer, text)
            rows.append(row._replace(tokens=row.tokens + ids, audio_slots=row.audio_slots + [TEXT_SLOT] * len(ids)))
        self._check_context(rows, 0)
        width = max(len(row.tokens) for row in rows)
        losses = np.asarray(self._answer_losses(self.module, self._collate(rows, width)))
        scores = [-losses[i, row.prompt_length - 1 : len(row.tokens) - 1] for i, row in enumerate(rows)]
        return scores if isinstance(audio, list) else scores[0]

    def _encode_prompts(self, audio: Audio | list[Audio], prompt: str | Sequence[str]) -> list[Segment]:
        """Questions as rows, up to where their answers begin."""
        if self.config.llama is None:
            raise UserError("this model directory holds no language model: there is nothing to answer with")
        clips = _as_list(audio)
        prompts = [prompt] * len(clips) if isinstance(prompt, str) else prompt
        if len(prompts) != len(clips):
            raise UserError(f"{len(prompts)} prompts for {len(clips)} clips; give one for all, or one each")
        if not clips:
            raise UserError("no clips and no questions")
        rows = []
        for source, text in zip(clips, prompts, strict=True):
            if source is not None:
                self._require_audio_encoder()
                text = text if AUDIO_PLACEHOLDER in text else AUDIO_PROMPT_PREFIX + text
            heard = () if source is None else (load_audio(source),)
            laid = encode_prompt(
                self.tokenizer,
                self.config.prompt_template,
                text,
                valid_audio_tokens=[[self.config.num_valid_audio_tokens(len(clip))] for clip in heard],
                num_audio_tokens=self.config.num_audio_tokens,
            )
            rows.append(Segment(laid.tokens, laid.audio_slots, len(laid.tokens), heard))
        return rows

    def _check_context(self, rows: Sequence[Segment], max_new_tokens: int) -> None:
        longest, context = max(len(row.tokens) for row in rows), self.config.llama.max_position_embeddings
        if longest + max_new_tokens > context:
            raise UserError(
                f"{longest} tokens and {max_new_tokens} to be generated are more than the {context} "
                "the language model can see"
            )

    def _require_audio_encoder(self) -> None:
        if self.config.qformer is None:
            raise UserError("this model directory holds one part of a model: nothing turns audio into audio tokens")

    def _collate(self, rows: Sequence[Segment], seq_len: int) -> Batch:
        window, audio_tokens = self.config.audio.window_samples, self.config.num_audio_tokens
        return collate([[row] for row in rows], seq_len=seq_len, window_samples=window, num_audio_tokens=audio_tokens)

    @functools.cached_property
    def _generate(self):
        options = {"eos_token_id": self.tokenizer.eos_token_id, "lora_scale": self.config.lora.scale}
        return jax.jit(
            lambda model, prompts, limit: greedy.generate(model, prompts, max_new_tokens=limit, **options),
            static_argnums=2,
        )

    @functools.cached_property
    def _encode(self):
        return jax.jit(lambda model, pcm, length: model.encode_audio(pcm, length))

    @functools.cached_property
    def _answer_losses(self):
        scale, pad = self.config.lora.scale, self.config.pad_classes
        return jax.jit(lambda model, batch: answer_losses(model(batch, lora_scale=scale)[0], batch, pad)[0])


def _as_list(audio: Audio | list[Audio]) -> list[Audio]:
    return audio if isinstance(audio, list) else [audio]


def load(directory: str | pathlib.Path, *, mesh: Mesh | None = None, dtype: str | None = None) -> Model:
    """Loads a model directory, or the latest checkpoint of a run directory.

    Args:
      directory: of the model or run.
      mesh: see `salmonn_jax.sharding.make_mesh`; each device reads its part of the weights and no host holds them
        all. By default all is on the first device.
      dtype: of activations and frozen weights, such as "bfloat16". By default what the model's configuration says on
        accelerators, and "float32" on CPUs, which have no faster one.

    Raises:
      UserError: it is neither a model nor a run directory.
    """
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
    description = model_directory.read_config_json(pathlib.Path(directory))
    kept = dtype or description["model"]["frozen_dtype"]
    loaded = model_directory.load_model(pathlib.Path(directory), Placement(mesh, kept))
    if dtype is None:
        return Model(loaded)
    config = dataclasses.replace(loaded.config, activation_dtype=dtype, frozen_dtype=dtype)
    return Model(dataclasses.replace(loaded, config=config, structure=parameters.model_structure(config)))
