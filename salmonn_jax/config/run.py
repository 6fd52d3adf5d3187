"""Configuration of a training run: data, optimiser, trained parameters, steps."""

from __future__ import annotations

import dataclasses
from typing import Literal

from salmonn_jax.config.model import ModelConfig
from salmonn_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
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

    # Name of a corpus in `data_pipelines.corpora`. "files" reads data sets that `launch.prepare` wrote, manifests,
    # annotation files of the original, and TFDS data sets.
    corpus: str = "minicorpus"
    data_dir: str = ".cache/minicorpus"  # directory of the corpus; for "files" also a URL
    mixture: dict[str, float] = dataclasses.field(default_factory=dict)  # {source: weight}
    weight_unit: Literal["examples", "hours", "tokens"] = "examples"  # unit of the weights; tokens are answer tokens
    temperature: float = 1.0  # weights are raised to 1 / temperature; values above 1 upsample small sources
    # {source: weight}: sources of earlier stages that are mixed in to prevent forgetting.
    replay: dict[str, float] = dataclasses.field(default_factory=dict)
    # "additive": replay weights are relative to the mixture, whose weights sum to 1. "share": fractions of all data.
    replay_as: Literal["additive", "share"] = "additive"
    rows: int = 8  # rows of a global batch
    clips: int = 8  # audio slots of a global batch
    seq_len: int = 512  # tokens per row
    max_answer_tokens: int = 300  # answers are cut to this many tokens, `</s>` included
    max_transcript_tokens: int = 0  # transcripts are cut to this many tokens; only the CTC loss uses them
    streams: int = 8  # independent data streams
    packing: Literal["pack", "pad"] = "pack"  # "pack": several examples per row; "pad": one example per row
    buckets: dict[str, float] = dataclasses.field(default_factory=dict)  # {row length: share of steps}, see above
    lookahead: int = 32  # examples each stream buffers, from which it chooses those of the next batch
    prompt_templates: str = ""  # JSON file of prompts by task, such as the original's train_prompt.json; "": ours
    channels: Literal["first", "mean"] = "first"  # which channel is used: the first, as in the original, or the mean
    # What happens to clips longer than the window: see `AudioRules` in `data_pipelines.sources.audio`.
    too_long: Literal["truncate", "chunk", "drop", "error"] = "truncate"
    speed: float = 0.0  # augmentation: maximum relative change of speed; 0.1 means 0.9 to 1.1 times
    gain: float = 0.0  # augmentation: maximum change of loudness in dB
    noise: float = 0.0  # augmentation: probability that noise is added to a clip, at 10 to 30 dB SNR
    noise_source: str = ""  # source whose recordings are used as noise; "": white noise
    # The run fails if significantly more than this share of the examples of a process cannot be used.
    max_bad_share: float = 0.05
    read_ahead_mb: float = 512.0  # memory per host in MiB for examples that are read in advance
    num_workers: int = 0  # worker processes per host that read and decode; 0 uses threads

    @property
    def stream_examples_per_step(self) -> int:
        """Returns an estimate of the examples that a stream places in a step: the larger of its rows and clip slots."""
        return max(self.rows, self.clips) // self.streams


def check_data_sizes(data: DataConfig) -> None:
    """Raises UserError if `rows`, `buckets`, `clips`, `streams` and `lookahead` are inconsistent."""
    if data.buckets:
        if data.packing != "pad":
            raise UserError(
                "data.buckets sets the lengths of padded rows; set data.packing=pad, or leave data.buckets out"
            )
        whole = all(length.isdecimal() and length == str(int(length)) != "0" for length in data.buckets)
        if not whole or max(map(int, data.buckets)) != data.seq_len:
            raise UserError(
                f"data.buckets has lengths {', '.join(data.buckets)}; they must be whole numbers above 0, and "
                f"the longest data.seq_len={data.seq_len}"
            )
        for length, share in data.buckets.items():
            if not share > 0:
                raise UserError(
                    f"data.buckets has a share of {share:g} for length {length}: must be > 0; leave the length out"
                )
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % data.streams:
            raise UserError(f"data.{name}={size}: must be a multiple of data.streams={data.streams}")
    if data.packing == "pad" and data.clips > data.rows:
        raise UserError(
            f"data.clips={data.clips}: must be at most data.rows={data.rows}, since a padded row holds at most one clip"
        )
    if data.lookahead < data.stream_examples_per_step:
        raise UserError(
            f"data.lookahead={data.lookahead}: must be at least {data.stream_examples_per_step}, the number of "
            "examples that a stream places in a step"
        )
    if not data.read_ahead_mb > 0:
        raise UserError(f"data.read_ahead_mb={data.read_ahead_mb:g}: must be > 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, as the original's `LinearWarmupCosineLRScheduler`."""

    peak_lr: float = 3e-5  # learning rate at the end of the warm-up
    init_lr: float = 1e-6  # learning rate at step 0
    end_lr: float = 1e-5  # learning rate at the last step
    warmup_steps: int = 3000
    b1: float = 0.9  # decay rate of Adam's first moment
    b2: float = 0.999  # decay rate of Adam's second moment
    eps: float = 1e-8
    weight_decay: float = 0.05  # not applied to biases and norms, see `salmonn_jax.training.optimizer`
    clip_norm: float | None = None  # maximum global norm of the gradient; None does not clip, as in the original


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training stage.

    `trainable` lists regular expressions for parameter paths such as `llama/layers/q_proj/lora_a`. A parameter is
    trainable if one of them matches its whole path. Trainable parameters have gradients and optimiser state, are
    stored in float32 and are saved in checkpoints. All other parameters are frozen.
    """

    name: str  # name of the configuration, which also labels the progress bar
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainable: tuple[str, ...] = (
        "query_tokens",
        "qformer/.*",
        "ln_speech/.*",
        "ln_audio/.*",
        "projection/.*",
        ".*/lora_[ab]",
    )
    num_train_steps: int = 90_000
    seed: int = 42  # seed of initial weights, data order and dropout
    save_every: int = 3000  # steps between checkpoints
    max_to_keep: int = 3  # checkpoints to keep; older ones are deleted
    ctc_weight: float = 0.0  # weight of the CTC loss on audio tokens, for training from random weights; 0 turns it off
    ctc_blank: int = 0  # token id of CTC's blank
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)  # {axis: size}; by default all devices are on `data`
    # Rematerialisation of the language model's layers: a name in `REMAT_POLICIES` of `salmonn_jax.models.common`.
    remat_policy: str = "none"


# Fields that may change when a run is resumed. They decide where and how a step is computed and where its data comes
# from, but not the model or the optimiser.
MUTABLE_RUN_FIELDS = ("mesh", "remat_policy", "save_every", "max_to_keep")
MUTABLE_DATA_FIELDS = (
    "data_dir",
    "mixture",
    "weight_unit",
    "temperature",
    "replay",
    "replay_as",
    "max_bad_share",
    "num_workers",
)
