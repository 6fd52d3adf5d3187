"""Public Python interface: `salmonn_jax.load(directory)` returns a `Model` that answers questions about audio."""

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
from salmonn_jax.audio.files import AudioSource, load_audio
from salmonn_jax.batch import Batch, Segment, collate
from salmonn_jax.decoding import greedy
from salmonn_jax.errors import UserError
from salmonn_jax.models.salmonn import Salmonn, answer_losses
from salmonn_jax.prompts import AUDIO_PLACEHOLDER, TEXT_SLOT, encode_answer, encode_prompt, stop_tokens
from salmonn_jax.sharding import Placement

AUDIO_PROMPT_PREFIX = f"<Speech>{AUDIO_PLACEHOLDER}</Speech> "
PAD_TO_MULTIPLE_OF = 32  # tokens; padding prompts to few lengths limits the number of compilations

Audio = AudioSource | None  # see `salmonn_jax.audio.files.load_audio`; None is a prompt without audio


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generated answer."""

    text: str
    token_ids: list[int]  # includes the stop token if finish_reason is "stop"
    score: float  # sum of the log-probabilities of the tokens
    finish_reason: str  # "stop" if the model emitted a stop token, "length" if it reached max_new_tokens


class Model:
    """A loaded model. `module` is the Flax module, for uses that the methods do not cover.

    Audio is a path, the contents of a file, or a pair of samples and their rate in Hz, or a list of these. As in the
    original, the model gets the first channel at 16 kHz, cut to the window of the model (30 s).
    """

    def __init__(self, loaded: model_directory.LoadedModel):
        self.config, self.tokenizer, self.fingerprint = loaded.config, loaded.tokenizer, loaded.fingerprint
        self.module: Salmonn = loaded.structure.merge(loaded.params)

    def generate(
        self, audio: Audio | list[Audio], prompt: str | Sequence[str], *, num_beams: int = 1, max_new_tokens: int = 200
    ) -> list[Generation]:
        """Generates an answer for each clip.

        Args:
          audio: one clip or a list of clips; None is a prompt without audio.
          prompt: one prompt for all clips, or a list with one prompt per clip. `<Speech><SpeechHere></Speech> ` is
            prepended to the prompt of a clip if it does not contain `<SpeechHere>`.
          num_beams: must be 1 (greedy decoding); beam search is not implemented yet.
          max_new_tokens: maximum number of tokens per answer.

        Raises:
          UserError: a clip cannot be read, the numbers of prompts and clips differ, the context of the language model
            is too short, or the model has no language model or no audio encoder.
        """
        if num_beams != 1:
            raise UserError(f"num_beams={num_beams}: there is no beam search yet; use num_beams=1")
        segments = self._encode_prompts(audio, prompt)
        self._check_context(segments, max_new_tokens)
        seq_len = -(-max(len(row.tokens) for row in segments) // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF
        batch = self._collate(segments, seq_len)
        prompt_length = np.array([row.prompt_length for row in segments], np.int32)
        prompt_batch = greedy.PromptBatch(batch.pcm, batch.pcm_length, batch.tokens, batch.audio_slot, prompt_length)
        decoded = jax.device_get(self._generate(self.module, prompt_batch, max_new_tokens))
        return [
            Generation(
                # A stop token need not be special for the tokenizer, so it is removed here.
                text=self.tokenizer.decode(ids[:-1] if decoded.finished[i] else ids),
                token_ids=ids,
                score=float(decoded.score[i]),
                finish_reason="stop" if decoded.finished[i] else "length",
            )
            for i, ids in enumerate(
                tokens[:length].tolist() for tokens, length in zip(decoded.tokens, decoded.length, strict=True)
            )
        ]

    def encode_audio(self, audio: AudioSource | list[AudioSource]) -> np.ndarray:
        """Returns all audio tokens of the clips, float32[clips, num_audio_tokens, hidden_size].

        The result includes audio tokens that the language model does not read (see `AudioConfig.tokens`).
        """
        self._require_audio_encoder()
        batch = self._collate([Segment([], [], 0, (load_audio(clip),)) for clip in _as_list(audio)], 0)
        return np.asarray(self._encode(self.module, batch.pcm, batch.pcm_length).astype(jnp.float32))

    def score(
        self, audio: Audio | list[Audio], prompt: str | Sequence[str], answer: str | Sequence[str]
    ) -> np.ndarray | list[np.ndarray]:
        """Computes the log-probabilities of the tokens of given answers, with teacher forcing.

        Args:
          audio: see `generate`.
          prompt: see `generate`.
          answer: one answer for a single clip, or a list with one answer per clip.

        Returns:
          float32[answer tokens] for a single clip, and a list of these for a list of clips. The end token of the
          model is the last one.

        Raises:
          UserError: see `generate`; or the numbers of answers and clips differ.
        """
        segments, answers = [], [answer] if isinstance(answer, str) else answer
        prompts = self._encode_prompts(audio, prompt)
        if len(answers) != len(prompts):
            raise UserError(f"{len(answers)} answers for {len(prompts)} clips; give one answer per clip")
        for segment, text in zip(prompts, answers, strict=True):
            answer_ids = encode_answer(self.tokenizer, text, stop_token_ids=self.config.stop_token_ids)
            segments.append(
                segment._replace(
                    tokens=segment.tokens + answer_ids, audio_slots=segment.audio_slots + [TEXT_SLOT] * len(answer_ids)
                )
            )
        self._check_context(segments, 0)
        seq_len = max(len(segment.tokens) for segment in segments)
        losses = np.asarray(self._answer_losses(self.module, self._collate(segments, seq_len)))
        scores = [-losses[i, segment.prompt_length - 1 : len(segment.tokens) - 1] for i, segment in enumerate(segments)]
        return scores if isinstance(audio, list) else scores[0]

    def _encode_prompts(self, audio: Audio | list[Audio], prompt: str | Sequence[str]) -> list[Segment]:
        """Encodes one segment per clip, which contains the prompt without an answer."""
        if self.config.llama is None:
            raise UserError("this model has no language model and cannot generate answers; load a whole SALMONN")
        clips = _as_list(audio)
        prompts = [prompt] * len(clips) if isinstance(prompt, str) else prompt
        if len(prompts) != len(clips):
            raise UserError(
                f"{len(prompts)} prompts for {len(clips)} clips; give one prompt for all clips or one per clip"
            )
        if not clips:
            raise UserError("no clips and no questions; give at least one (audio=None asks without a clip)")
        segments = []
        for source, text in zip(clips, prompts, strict=True):
            if source is not None:
                self._require_audio_encoder()
                text = text if AUDIO_PLACEHOLDER in text else AUDIO_PROMPT_PREFIX + text
            pcm = () if source is None else (load_audio(source),)
            encoded_prompt = encode_prompt(
                self.tokenizer,
                self.config.prompt_template,
                text,
                valid_audio_token_counts=[[self.config.num_valid_audio_tokens(len(clip))] for clip in pcm],
                num_audio_tokens=self.config.num_audio_tokens,
                add_bos_token=self.config.add_bos_token,
            )
            segments.append(Segment(encoded_prompt.tokens, encoded_prompt.audio_slots, len(encoded_prompt.tokens), pcm))
        return segments

    def _check_context(self, segments: Sequence[Segment], max_new_tokens: int) -> None:
        """Raises UserError if a segment and its answer are longer than the context of the language model."""
        longest, context = max(len(segment.tokens) for segment in segments), self.config.llama.max_position_embeddings
        if longest + max_new_tokens > context:
            raise UserError(
                f"{longest} tokens and {max_new_tokens} new tokens are more than the {context} tokens of "
                "the language model's context; shorten the prompt or lower max_new_tokens"
            )

    def _require_audio_encoder(self) -> None:
        """Raises UserError if the model has no audio encoder."""
        if self.config.qformer is None:
            raise UserError("this model has no Q-Former and cannot encode audio; load a whole SALMONN")

    def _collate(self, segments: Sequence[Segment], seq_len: int) -> Batch:
        """Builds a batch with one row per segment."""
        window_samples, num_audio_tokens = self.config.audio.window_samples, self.config.num_audio_tokens
        rows = [[segment] for segment in segments]
        return collate(rows, seq_len=seq_len, window_samples=window_samples, num_audio_tokens=num_audio_tokens)

    @functools.cached_property
    def _generate(self):
        stop_token_ids = stop_tokens(self.config.stop_token_ids, self.tokenizer)
        options = {"stop_token_ids": stop_token_ids, "lora_scale": self.config.lora.scale}
        return jax.jit(
            lambda model, prompts, max_new_tokens: greedy.generate(
                model, prompts, max_new_tokens=max_new_tokens, **options
            ),
            static_argnums=2,
        )

    @functools.cached_property
    def _encode(self):
        return jax.jit(lambda model, pcm, length: model.encode_audio(pcm, length))

    @functools.cached_property
    def _answer_losses(self):
        lora_scale, pad_classes = self.config.lora.scale, self.config.pad_classes
        return jax.jit(
            lambda model, batch: answer_losses(model(batch, lora_scale=lora_scale)[0], batch, pad_classes)[0]
        )


def _as_list(audio: Audio | list[Audio]) -> list[Audio]:
    return audio if isinstance(audio, list) else [audio]


def load(directory: str | pathlib.Path, *, mesh: Mesh | None = None, dtype: str | None = None) -> Model:
    """Loads a model directory, or the latest checkpoint of a run directory.

    Args:
      directory: model or run directory.
      mesh: device mesh from `salmonn_jax.sharding.make_mesh`. Each device reads its shards of the weights, and no host
        reads all of them. By default all weights are on the first device.
      dtype: dtype of activations and weights, "float32" or "bfloat16". By default bfloat16 on accelerators, and
        float32 on CPUs, where bfloat16 is not faster.

    Raises:
      UserError: the directory is neither a model nor a run directory.
    """
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Model(model_directory.load_model(pathlib.Path(directory), Placement(mesh, dtype), dtype))
