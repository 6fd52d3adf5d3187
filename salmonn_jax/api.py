"""Public Python interface: `salmonn_jax.load(directory)` returns a `Model` that answers questions about audio."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from salmonn_jax import model_directory
from salmonn_jax.audio.files import AudioSource, Channels
from salmonn_jax.audio.windows import DecodingTooLong
from salmonn_jax.batch import Batch, Segment, collate
from salmonn_jax.config import GenerationConfig, from_dict
from salmonn_jax.decoding import decoder, memory
from salmonn_jax.decoding.answers import Generation, join_answers
from salmonn_jax.decoding.batching import MAX_BATCH_SIZE, bucket_length, prompt_batches
from salmonn_jax.decoding.options import decoding_options
from salmonn_jax.decoding.requests import Audio, Request, clip_name, make_request, pair_prompts, read_windows
from salmonn_jax.errors import UserError, check_choice
from salmonn_jax.models.salmonn import Salmonn, answer_losses
from salmonn_jax.paths import PathLike, as_path, check_readable
from salmonn_jax.prompts import TEXT_SLOT, encode_answer, stop_tokens
from salmonn_jax.sharding import Placement, clip_sharding, num_data_shards, replicated, row_sharding


class Model:
    """A loaded model. `module` is the Flax module, for uses that the methods do not cover.

    Audio is a path, the contents of a file, or a pair of samples and their rate in Hz, or a list of these. The model
    gets one channel at 16 kHz. These options of the methods say how it is made:

      too_long: what happens to a clip that is longer than the window of the encoders (30 s in the released models).
        "error" raises AudioError. "truncate" cuts it to the window, as the original does. "chunk" puts all its windows
        into one prompt, one after another. "chunk_answers", for `generate` only, answers each window on its own.
      channels: "first" is the first channel, as in the original; "mean" is the mean of all channels.
    """

    def __init__(self, loaded: model_directory.LoadedModel, mesh: Mesh | None = None):
        self.config, self.tokenizer, self.fingerprint = loaded.config, loaded.tokenizer, loaded.fingerprint
        self.module: Salmonn = loaded.structure.merge(loaded.params)
        self.mesh = mesh

    def generate(
        self,
        audio: Audio | list[Audio],
        prompt: str | Sequence[str],
        *,
        too_long: DecodingTooLong = "error",
        channels: Channels = "first",
        batch_size: int | None = None,
        **settings: Any,
    ) -> list[Generation]:
        """Generates an answer for each clip.

        Args:
          audio: one clip or a list of clips; None is a prompt without audio.
          prompt: one prompt for all clips, or a list with one prompt per clip. `<Speech><SpeechHere></Speech> ` is
            prepended to the prompt of a clip if it does not contain `<SpeechHere>`.
          too_long: see `Model`.
          channels: see `Model`.
          batch_size: rows that are computed at a time. Batches are padded to it, so that calls with the same batch
            size share compiled programs. On a mesh it is rounded up to a multiple of the data shards. By default the
            next power of two of the number of prompts, at most what fits into memory (`max_batch_size`).
          **settings: fields of `salmonn_jax.config.GenerationConfig`, such as `num_beams=4` and `max_new_tokens=200`,
            which are the defaults. With `too_long="chunk_answers"`, each window gets `max_new_tokens`.

        Raises:
          UserError: a setting is wrong, a clip cannot be read or is too long, the numbers of prompts and clips differ,
            the context of the language model is too short, or the model has no language model or no audio encoder.
        """
        generation_config = from_dict(GenerationConfig, settings)
        clips, prompts = pair_prompts(audio, prompt)
        options = {
            "max_new_tokens": generation_config.max_new_tokens,
            "too_long": too_long,
            "channels": channels,
        }
        requests = [
            self.make_request(clip, text, name=clip_name(clip, i), **options)
            for i, (clip, text) in enumerate(zip(clips, prompts, strict=True))
        ]
        return self.answer(requests, generation_config, batch_size=batch_size)

    def make_request(
        self,
        audio: Audio,
        prompt: str,
        *,
        max_new_tokens: int,
        too_long: DecodingTooLong = "error",
        channels: Channels = "first",
        name: str = "the clip",
    ) -> Request:
        """Reads a clip and encodes a prompt about it, for `answer`.

        Args:
          audio: one clip, or None.
          prompt: see `generate`.
          max_new_tokens: tokens that the answer may have; they must fit into the context of the language model.
          too_long: see `Model`.
          channels: see `Model`.
          name: name of the clip, for error messages.

        Raises:
          AudioError: the clip cannot be read, or is too long.
          UserError: see `generate`.
        """
        _check_options(too_long, channels)
        return make_request(
            self.config,
            self.tokenizer,
            audio,
            prompt,
            max_new_tokens=max_new_tokens,
            too_long=too_long,
            channels=channels,
            name=name,
        )

    def answer(
        self, requests: Sequence[Request], generation_config: GenerationConfig, *, batch_size: int | None = None
    ) -> list[Generation]:
        """Decodes requests of `make_request`.

        Args:
          requests: prompts, made for the same `max_new_tokens`.
          generation_config: settings of decoding.
          batch_size: see `generate`.

        Raises:
          UserError: requests were made for another `max_new_tokens`, `batch_size` is below 1, a batch does not fit into
            memory, or a score is not finite, as with weights that are NaN.
        """
        if not requests:
            return []
        segments = [segment for request in requests for segment in request.segments]
        context = self.config.llama.max_position_embeddings
        max_seq_len = context - generation_config.max_new_tokens
        longest = max(len(segment.tokens) for segment in segments)
        if longest > max_seq_len:
            raise UserError(
                f"{longest} tokens and {generation_config.max_new_tokens} new tokens are more than the {context} "
                "tokens of the language model's context; make the requests with the same max_new_tokens"
            )
        if batch_size is None:
            fitting = self.max_batch_size(generation_config, longest)
            batch_size = min(fitting, 1 << (len(segments) - 1).bit_length())
        elif batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be at least 1")
        shards = 1 if self.mesh is None else num_data_shards(self.mesh)
        batches = prompt_batches(
            segments,
            self.config,
            batch_size=-(-batch_size // shards) * shards,
            max_seq_len=max_seq_len,
            seed=generation_config.seed if generation_config.do_sample else None,
        )
        generation_config.check_lora_multiplier(self.config.llama.num_hidden_layers)
        options, numbers = decoding_options(
            generation_config,
            stop_token_ids=self._stop_token_ids,
            start_token_id=self.tokenizer.bos_token_id,
            lora_scale=self.config.lora.scale,
            pad_classes=self.config.pad_classes,
        )
        decoded: dict[int, decoder.DecodeResult] = {}  # by segment
        for indices, batch in batches:
            embedded = self._embed_prompts(self.module, self._place(batch))
            result = jax.device_get(self._decode(self.module.llama, embedded, numbers, options=options))
            if not np.isfinite(result.score).all():
                raise UserError(
                    "the model gives scores that are not finite, so its answers mean nothing; look for NaN in its "
                    "weights, or try float32 if activations overflow"
                )
            for row, index in enumerate(indices):
                decoded[index] = decoder.DecodeResult(*(field[row] for field in result))
        rows = (decoded[index] for index in range(len(segments)))
        return [
            join_answers(request, [next(rows) for _ in request.segments], self.tokenizer, self._stop_token_ids)
            for request in requests
        ]

    def max_batch_size(self, generation_config: GenerationConfig, num_prompt_tokens: int) -> int:
        """Returns the largest batch size whose memory fits, a power of two of rows per data shard, at most 32.

        Args:
          generation_config: settings of decoding.
          num_prompt_tokens: tokens of the longest prompt, audio tokens included.

        Raises:
          UserError: the smallest batch does not fit.
        """
        max_seq_len = self.config.llama.max_position_embeddings - generation_config.max_new_tokens
        device = jax.local_devices()[0] if self.mesh is None else self.mesh.local_devices[0]
        return memory.fitting_batch_size(
            self.module,
            generation_config,
            seq_len=bucket_length(num_prompt_tokens, max_seq_len),
            max_rows_per_shard=MAX_BATCH_SIZE,
            mesh=self.mesh,
            limit=memory.device_limit(device),
        )

    @property
    def num_compilations(self) -> int:
        """Number of programs that `generate` and `answer` have compiled.

        Each bucket of prompt lengths, with or without clips, has one program for the prompts and one for decoding, and
        so have each batch size, `num_beams`, `max_new_tokens`, `early_stopping`, `do_sample` and `compat`, a repetition
        penalty, and `lora_multiplier=0`. Other settings share programs.
        """
        return self._embed_prompts._cache_size() + self._decode._cache_size()

    @functools.cached_property
    def _stop_token_ids(self) -> tuple[int, ...]:
        return stop_tokens(self.config.stop_token_ids, self.tokenizer)

    def _place(self, batch: decoder.PromptBatch) -> decoder.PromptBatch:
        """Splits a batch over the mesh, if there is one. Every process passes the same batch."""
        if self.mesh is None:
            return batch
        rows, clips = row_sharding(self.mesh), clip_sharding(self.mesh, len(batch.pcm))
        shardings = decoder.PromptBatch(clips, clips, rows, rows, rows, rows)
        return jax.tree.map(
            lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]),
            batch,
            shardings,
        )

    def encode_audio(
        self,
        audio: AudioSource | list[AudioSource],
        *,
        too_long: DecodingTooLong = "error",
        channels: Channels = "first",
    ) -> np.ndarray:
        """Computes all audio tokens of the clips, including those that the language model does not read.

        Which audio tokens the language model reads, `AudioConfig.tokens` decides.

        Args:
          audio: one clip or a list of clips.
          too_long: see `Model`.
          channels: see `Model`.

        Returns:
          float32[clips, windows * num_audio_tokens, hidden_size], where `windows` is 1, or with `too_long="chunk"` the
          number of windows of the longest clip. A clip with fewer windows has zeros at the end.

        Raises:
          UserError: a clip cannot be read or is too long, or the model has no audio encoder.
        """
        _refuse_chunk_answers(too_long, "encode_audio")
        _check_options(too_long, channels)
        sources = audio if isinstance(audio, list) else [audio]
        if not sources:
            raise UserError("no clips; give at least one")
        clips = [
            read_windows(self.config, clip, too_long=too_long, channels=channels, name=clip_name(clip, i))
            for i, clip in enumerate(sources)
        ]
        batch = self._collate([Segment([], [], 0, windows) for windows in clips], 0)
        encoded = np.asarray(self._encode(self.module, batch.pcm, batch.pcm_length).astype(jnp.float32))
        if len(encoded) == len(clips):
            return encoded
        num_windows = [len(windows) for windows in clips]
        result = np.zeros((len(clips), max(num_windows), *encoded.shape[1:]), np.float32)
        result[np.arange(max(num_windows)) < np.array(num_windows)[:, None]] = encoded
        return result.reshape(len(clips), -1, encoded.shape[-1])

    def score(
        self,
        audio: Audio | list[Audio],
        prompt: str | Sequence[str],
        answer: str | Sequence[str],
        *,
        too_long: DecodingTooLong = "error",
        channels: Channels = "first",
    ) -> np.ndarray | list[np.ndarray]:
        """Computes the log-probabilities of the tokens of given answers, with teacher forcing.

        Args:
          audio: see `generate`.
          prompt: see `generate`.
          answer: one answer for a single clip, or a list with one answer per clip.
          too_long: see `Model`.
          channels: see `Model`.

        Returns:
          float32[answer tokens] for a single clip, and a list of these for a list of clips. The end token of the
          model is the last one.

        Raises:
          UserError: see `generate`; or the numbers of answers and clips differ.
        """
        _refuse_chunk_answers(too_long, "score")
        clips, prompts = pair_prompts(audio, prompt)
        answers = [answer] if isinstance(answer, str) else answer
        if len(answers) != len(prompts):
            raise UserError(f"{len(answers)} answers for {len(prompts)} clips; give one answer per clip")
        segments = []
        for i, (clip, text) in enumerate(zip(clips, prompts, strict=True)):
            answer_ids = encode_answer(self.tokenizer, answers[i], stop_token_ids=self.config.stop_token_ids)
            (segment,) = self.make_request(
                clip,
                text,
                max_new_tokens=len(answer_ids),
                too_long=too_long,
                channels=channels,
                name=clip_name(clip, i),
            ).segments
            segments.append(
                segment._replace(
                    tokens=segment.tokens + answer_ids, audio_slots=segment.audio_slots + [TEXT_SLOT] * len(answer_ids)
                )
            )
        seq_len = max(len(segment.tokens) for segment in segments)
        losses = np.asarray(self._answer_losses(self.module, self._collate(segments, seq_len)))
        scores = [-losses[i, segment.prompt_length - 1 : len(segment.tokens) - 1] for i, segment in enumerate(segments)]
        return scores if isinstance(audio, list) else scores[0]

    def _collate(self, segments: Sequence[Segment], seq_len: int) -> Batch:
        """Builds a batch with one row per segment."""
        window_samples, num_audio_tokens = self.config.audio.window_samples, self.config.num_audio_tokens
        rows = [[segment] for segment in segments]
        return collate(rows, seq_len=seq_len, window_samples=window_samples, num_audio_tokens=num_audio_tokens)

    @functools.cached_property
    def _embed_prompts(self):
        shardings = None
        if self.mesh is not None:
            rows = row_sharding(self.mesh)
            shardings = decoder.EmbeddedPrompts(rows, rows, rows, rows)
        return jax.jit(lambda model, prompts: decoder.embed_prompts(model, prompts), out_shardings=shardings)

    @functools.cached_property
    def _decode(self):
        return jax.jit(
            lambda llama, prompts, numbers, options: decoder.decode(
                llama, prompts, numbers, options=options, mesh=self.mesh
            ),
            static_argnames="options",
            out_shardings=None if self.mesh is None else replicated(self.mesh),
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


def _check_options(too_long: str, channels: str) -> None:
    """Raises UserError if an option is none of its choices."""
    check_choice("too_long", too_long, DecodingTooLong)
    check_choice("channels", channels, Channels)


def _refuse_chunk_answers(too_long: str, method: str) -> None:
    """Raises UserError for the policy that only `Model.generate` has."""
    if too_long == "chunk_answers":
        raise UserError(f"too_long='chunk_answers' is for generate; for {method} choose error, truncate or chunk")


def default_dtype() -> str:
    """Returns the dtype that `load` chooses: bfloat16 on accelerators, and float32 on CPUs."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load(directory: PathLike, *, mesh: Mesh | None = None, dtype: str | None = None) -> Model:
    """Loads a model directory, or the latest checkpoint of a run directory.

    Args:
      directory: model or run directory, also in a bucket (`gs://` or `s3://`).
      mesh: device mesh from `salmonn_jax.sharding.make_mesh`. Each device reads its shards of the weights, and no host
        reads all of them. By default all weights are on the first device.
      dtype: dtype of activations and weights, "float32" or "bfloat16". By default bfloat16 on accelerators, and
        float32 on CPUs, where bfloat16 is not faster.

    Raises:
      UserError: the directory is neither a model nor a run directory, or its bucket cannot be reached.
    """
    dtype = dtype or default_dtype()
    path = as_path(directory)
    check_readable(path)
    return Model(model_directory.load_model(path, Placement(mesh, dtype), dtype), mesh)
