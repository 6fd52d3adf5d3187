"""Recipe of a training run: data, optimiser, trained parameters, steps, dtypes. It applies to any model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass

from salmonn_jax.config.generation import LoraMultiplier
from salmonn_jax.config.model import Probability
from salmonn_jax.config.optimizer import AdamW, Optimizer, Schedule, WarmupCosine
from salmonn_jax.config.typed import STRICT, NonNegativeInt, PositiveInt, check_multiple
from salmonn_jax.errors import unknown_name

Dtype = Literal["float32", "bfloat16"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Training data of a run: its sources, their mixture, and the shape of a batch.

    A global batch has `rows` rows of `seq_len` tokens and `clips` slots for audio. An example without audio takes no
    slot. The weights of the mixture apply to examples with and without audio alike.

    The data is split into `streams` independent streams. Each stream mixes the sources, packs its rows and fills an
    equal part of every batch. The processes of a job share the streams, so a batch is the same for any number of
    processes and devices. `rows` and `clips` must be multiples of `streams`, and `streams` must be a multiple of the
    number of data shards of the mesh.

    With `packing` "pad", `buckets` sets the row lengths and the share of the steps that each length gets, for example
    `{"256": 0.8, "512": 0.2}`. The longest length must be `seq_len`. Each length is compiled once. If long examples
    are more frequent than the steps with long rows, the shorter rows stay empty: `launch.prepare inspect` shows the
    lengths of the examples and how well they fill the rows.
    """

    corpus: str = Field(
        "minicorpus",
        description='name of a corpus in `data_pipelines.corpora`; "files" reads data sets of `launch.prepare`, '
        "manifests, annotation files of the original, and TFDS data sets",
    )
    data_dir: str = Field(".cache/minicorpus", description='directory of the corpus; for "files" also a URL')
    mixture: dict[str, PositiveFloat] = Field(default_factory=dict, description="{source: weight}")
    weight_unit: Literal["examples", "hours", "tokens"] = Field(
        "examples", description="unit of the weights; tokens are answer tokens"
    )
    temperature: PositiveFloat = Field(
        1.0, description="weights are raised to 1 / temperature; values above 1 upsample small sources"
    )
    replay: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="{source: weight}: sources of earlier stages that are mixed in to prevent forgetting",
    )
    replay_as: Literal["additive", "share"] = Field(
        "additive",
        description='"additive": replay weights are relative to the mixture, whose weights sum to 1; "share": they are '
        "fractions of all data",
    )
    rows: PositiveInt = Field(8, description="rows of a global batch")
    clips: NonNegativeInt = Field(8, description="audio slots of a global batch")
    seq_len: PositiveInt = Field(512, description="tokens per row")
    max_answer_tokens: PositiveInt = Field(300, description="answers are cut to this many tokens, `</s>` included")
    max_transcript_tokens: NonNegativeInt = Field(
        0, description="transcripts are cut to this many tokens; only the CTC loss uses them"
    )
    streams: PositiveInt = Field(8, description="independent data streams")
    packing: Literal["pack", "pad"] = Field(
        "pack", description='"pack": several examples per row; "pad": one example per row'
    )
    buckets: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="{row length: share of steps}: lengths of padded rows"
    )
    lookahead: PositiveInt = Field(
        32, description="examples each stream buffers, from which it chooses those of the next batch"
    )
    prompt_templates: str = Field(
        "", description='JSON file of prompts by task, such as the original\'s train_prompt.json; "": ours'
    )
    channels: Literal["first", "mean"] = Field(
        "first", description="channel of a recording that is used: the first, as in the original, or the mean of all"
    )
    too_long: Literal["truncate", "chunk", "drop", "error"] = Field(
        "truncate",
        description="what happens to clips longer than the encoder window; chunk splits them into several windows",
    )
    speed: Probability = Field(
        0.0, description="augmentation: maximum relative change of speed; 0.1 means 0.9 to 1.1 times"
    )
    gain: NonNegativeFloat = Field(0.0, description="augmentation: maximum change of loudness in dB")
    noise: Share = Field(0.0, description="augmentation: probability that noise is added to a clip, at 10 to 30 dB SNR")
    noise_source: str = Field("", description='source whose recordings are used as noise; "": white noise')
    encoder_cache: str = Field(
        "",
        description="directory or URL of stored encoder frames, which a run reads in place of running its frozen "
        'encoders, and fills first (see docs/encoder_cache.md); "": none',
    )
    encoder_cache_dtype: Literal["", "float32", "bfloat16", "float16"] = Field(
        "", description='dtype of the stored frames; "": that of activations'
    )
    eval_split: str = Field("test", description="split of the held-out examples of each source")
    eval_examples: PositiveInt = Field(
        64, description="held-out examples of each source, at most; always the same ones"
    )
    max_bad_share: Share = Field(
        0.05,
        description="the run fails if significantly more than this share of the examples of a process cannot be used",
    )
    read_ahead_mb: PositiveFloat = Field(
        512.0, description="largest memory per host in MiB for examples that are read in advance"
    )
    num_workers: NonNegativeInt = Field(0, description="worker processes per host that read and decode; 0 uses threads")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.buckets:
            if self.packing != "pad":
                raise ValueError("buckets sets the lengths of padded rows; set packing=pad, or leave buckets out")
            whole = all(length.isdecimal() and length == str(int(length)) != "0" for length in self.buckets)
            if not whole or max(map(int, self.buckets)) != self.seq_len:
                raise ValueError(
                    f"buckets has lengths {', '.join(self.buckets)}; they must be whole numbers above 0, and the "
                    f"longest seq_len={self.seq_len}"
                )
        augmentation = next((name for name in ("speed", "gain", "noise") if getattr(self, name)), None)
        if self.encoder_cache and augmentation:
            raise ValueError(
                f"encoder_cache={self.encoder_cache} stores frames of unchanged clips; set {augmentation}=0, or leave "
                "encoder_cache out"
            )
        if self.encoder_cache_dtype and not self.encoder_cache:
            raise ValueError("encoder_cache_dtype has no effect without encoder_cache; set that, or leave both out")
        check_multiple("rows", self.rows, "streams", self.streams)
        check_multiple("clips", self.clips, "streams", self.streams)
        if self.packing == "pad" and self.clips > self.rows:
            raise ValueError(f"clips={self.clips}: must be at most rows={self.rows}, one example per padded row")
        if self.lookahead < self.stream_examples_per_step:
            raise ValueError(
                f"lookahead={self.lookahead}: must be at least {self.stream_examples_per_step}, the number of examples "
                "that a stream places in a step"
            )
        return self

    @property
    def source_names(self) -> tuple[str, ...]:
        """Returns the names of the sources, in the order of `Batch.source_index`."""
        return tuple(sorted({*self.mixture, *self.replay}))

    @property
    def stream_examples_per_step(self) -> int:
        """Returns an estimate of the examples that a stream places in a step: the larger of its rows and clip slots."""
        return max(self.rows, self.clips) // self.streams


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """How a model is trained. A recipe names no architecture, so it applies to any model.

    `trainable` lists modules by name and regular expressions for parameter paths such as `llama/layers/q_proj/lora_a`
    (see `salmonn_jax.models.parameters.trainable_modules`). Modules that the model does not have are ignored.
    Trainable parameters have gradients and optimiser state, are stored in float32 and are saved in checkpoints. All
    other parameters are frozen.
    """

    data: DataConfig = Field(DataConfig(), description="training data")
    optimizer: Optimizer = Field(AdamW(), discriminator="name", description="optimiser")
    lr_schedule: Schedule = Field(WarmupCosine(), discriminator="name", description="learning rate")
    trainable: tuple[str, ...] = Field(
        ("query_tokens", "qformer", "norms", "projection", "adapters"),
        description="trained parameters: query_tokens, qformer, norms, projection, adapters, llm, an encoder such as "
        "whisper or beats, or regular expressions for whole parameter paths",
    )
    num_train_steps: PositiveInt = Field(90_000, description="training steps")
    seed: NonNegativeInt = Field(42, description="seed of initial weights, data order and dropout")
    save_every: PositiveInt = Field(3000, description="steps between checkpoints")
    max_to_keep: PositiveInt = Field(3, description="checkpoints to keep; older ones are deleted")
    eval_every: NonNegativeInt = Field(
        0, description="steps between evaluations on held-out examples, of which one is after the last step; 0: none"
    )
    keep_best: str = Field(
        "",
        description="metric of these evaluations, such as eval/loss or eval/accuracy/SOURCE; the checkpoint with its "
        'best value is kept beside the latest ones; "": none',
    )
    eval_lora_multiplier: LoraMultiplier = Field(
        1.0,
        description="factor of the adapters' scale in these evaluations, or a list with one of each layer; 0 leaves "
        "the adapters out",
    )
    ctc_weight: NonNegativeFloat = Field(
        0.0, description="weight of the CTC loss on audio tokens, for training from random weights; 0 turns it off"
    )
    ctc_blank: NonNegativeInt = Field(0, description="token id of CTC's blank")
    activation_dtype: Dtype = Field("bfloat16", description="dtype of activations")
    frozen_dtype: Dtype = Field(
        "bfloat16", description="dtype of frozen parameters; trainable parameters are stored in float32"
    )
    mesh: dict[Literal["data", "fsdp", "tensor"], PositiveInt] = Field(
        default_factory=dict, description="{axis: size}; by default all devices are on `data`"
    )
    remat_policy: Literal["none", "dots", "full"] = Field(
        "none", description="rematerialisation of the language model's layers, see `salmonn_jax.models.common`"
    )
    gradient_accumulation_steps: PositiveInt = Field(
        1,
        description="micro-batches into which the batch of a step is split to save memory; the gradient is that of the "
        "whole batch; it must divide data.streams",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.ctc_weight and not self.data.max_transcript_tokens:
            raise ValueError(
                f"ctc_weight={self.ctc_weight:g}: the CTC loss needs transcripts; set data.max_transcript_tokens"
            )
        check_multiple(
            "data.streams", self.data.streams, "gradient_accumulation_steps", self.gradient_accumulation_steps
        )
        if self.eval_lora_multiplier != 1.0 and not self.eval_every:
            raise ValueError(f"eval_lora_multiplier={self.eval_lora_multiplier}: needs evaluations; set eval_every")
        if self.keep_best and not self.eval_every:
            raise ValueError(f"keep_best={self.keep_best}: needs evaluations; set eval_every")
        if self.keep_best and self.keep_best not in self.eval_metrics:
            raise ValueError(str(unknown_name("metric in keep_best", self.keep_best, self.eval_metrics)))
        return self

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        """Returns the names of the metrics of the held-out evaluation. Losses are better if lower."""
        kinds = ("eval/loss", "eval/accuracy")
        by_source = (f"{kind}/{source}" for kind in kinds for source in self.data.source_names)
        return (*kinds, *(("eval/ctc",) if self.ctc_weight else ()), *by_source)


# Fields that may change when a run is resumed: placement, checkpointing, evaluation, mixture and data loading.
MUTABLE_RECIPE_FIELDS = (
    "mesh",
    "remat_policy",
    "gradient_accumulation_steps",
    "save_every",
    "max_to_keep",
    "eval_every",
    "keep_best",
    "eval_lora_multiplier",
)
MUTABLE_DATA_FIELDS = (
    "data_dir",
    "mixture",
    "weight_unit",
    "temperature",
    "replay",
    "replay_as",
    "encoder_cache",
    "eval_split",
    "eval_examples",
    "max_bad_share",
    "num_workers",
    "read_ahead_mb",
)
