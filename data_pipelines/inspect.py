"""Statistics and sample examples of training batches, as a table and as an HTML page. `launch.prepare inspect` uses it.

The statistics are computed from the batches themselves, not from the configuration.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from salmonn_jax.audio.files import encode_flac
from salmonn_jax.batch import Batch
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path
from salmonn_jax.prompts import TEXT_SLOT
from salmonn_jax.tokenizer import Tokenizer

TEMPLATE = pathlib.Path(__file__).with_name("inspect.html")


@dataclasses.dataclass
class SourceTotals:
    """Totals of one source over all inspected batches."""

    examples: int = 0
    hours: float = 0.0
    loss_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example as the model is trained on it. `flac` is the clip as a FLAC file in base64; "" without a clip."""

    source: str
    prompt: str
    answer: str
    seconds: float
    flac: str


@dataclasses.dataclass
class BatchStatistics:
    """Statistics of the inspected batches."""

    num_batches: int = 0
    token_fill: float = 0.0  # share of the tokens in a batch that belong to examples
    clip_fill: float = 0.0  # share of the clip slots that hold a clip
    sources: dict[str, SourceTotals] = dataclasses.field(default_factory=dict)
    example_tokens: list[int] = dataclasses.field(default_factory=list)  # tokens of each example
    answer_tokens: list[int] = dataclasses.field(default_factory=list)  # tokens of each answer
    clip_seconds: list[float] = dataclasses.field(default_factory=list)  # duration of each clip
    samples: list[Sample] = dataclasses.field(default_factory=list)


def inspect_batches(
    batches: Iterator[Batch],
    num_batches: int,
    source_names: Sequence[str],
    tokenizer: Tokenizer,
    num_audio_tokens: int,
    samples_per_source: int,
) -> BatchStatistics:
    """Reads batches of one process and computes their statistics.

    Args:
      batches: complete batches, as `stream.training_data.TrainingData` yields them if it owns all streams.
      num_batches: number of batches to read.
      source_names: names of the sources; `Batch.source_index` is an index into them.
      tokenizer: decodes prompts and answers of the samples.
      num_audio_tokens: number of audio tokens of a clip slot.
      samples_per_source: number of complete examples to keep of each source.
    """
    statistics = BatchStatistics(sources={name: SourceTotals() for name in source_names})
    num_samples: collections.Counter[str] = collections.Counter()
    num_tokens = num_clips = num_clip_slots = 0
    for _ in range(num_batches):
        batch = next(batches)
        num_tokens += batch.segments.size
        num_clips += int((batch.pcm_length > 0).sum())
        num_clip_slots += len(batch.pcm)
        for row, positions in _segments(batch):
            name = source_names[batch.source_index[row, positions[0]]]
            slots = batch.audio_slot[row, positions]
            clips = sorted(set((slots[slots != TEXT_SLOT] // max(num_audio_tokens, 1)).tolist()))
            seconds = float(batch.pcm_length[clips].sum()) / SAMPLE_RATE
            is_answer = batch.loss_mask[row, positions]
            source = statistics.sources[name]
            source.examples += 1
            source.hours += seconds / 3600
            source.loss_tokens += int(is_answer.sum())
            statistics.example_tokens.append(len(positions))
            statistics.answer_tokens.append(int(is_answer.sum()))
            statistics.clip_seconds += [seconds] if clips else []
            if num_samples[name] < samples_per_source:
                num_samples[name] += 1
                ids, pcm = batch.tokens[row, positions], [batch.pcm[clip][: batch.pcm_length[clip]] for clip in clips]
                prompt_ids = ids[~is_answer & (slots == TEXT_SLOT)].tolist()
                statistics.samples.append(
                    Sample(
                        name,
                        tokenizer.decode(prompt_ids),
                        tokenizer.decode(ids[is_answer].tolist()),
                        seconds,
                        base64.b64encode(encode_flac(np.concatenate(pcm))).decode() if pcm else "",
                    )
                )
    statistics.num_batches = num_batches
    statistics.token_fill = sum(statistics.example_tokens) / num_tokens
    statistics.clip_fill = num_clips / num_clip_slots if num_clip_slots else 1.0
    statistics.samples.sort(key=lambda sample: sample.source)
    return statistics


def table_rows(statistics: BatchStatistics, shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns one row for each source.

    Args:
      statistics: result of `inspect_batches`.
      shares: target share of each source in the mixture.

    Returns:
      Rows with the source, its target share, its examples, hours and loss tokens, and its share of each of these.
    """
    units = ("examples", "hours", "loss_tokens")
    totals = {unit: sum(getattr(source, unit) for source in statistics.sources.values()) for unit in units}
    return [
        {
            "source": name,
            "target_share": shares[name],
            **{unit: getattr(source, unit) for unit in totals},
            **{f"{unit}_share": getattr(source, unit) / total if total else 0.0 for unit, total in totals.items()},
        }
        for name, source in sorted(statistics.sources.items())
    ]


def summary_lines(statistics: BatchStatistics) -> list[str]:
    """Returns lines of text on the fill of the batches and on the lengths of examples, answers and clips."""

    def percentiles(name: str, values: Sequence[float], unit: str) -> str:
        if not values:
            return f"{name}: none"
        low, median, high, longest = np.percentile(values, [5, 50, 95, 100])
        return f"{name}: median {median:.4g}{unit}, 5 % below {low:.4g}, 5 % above {high:.4g}, longest {longest:.4g}"

    examples = len(statistics.example_tokens)
    tokens_per_example = sum(statistics.example_tokens) / max(examples, 1)
    per_batch = examples / max(statistics.num_batches, 1)
    return [
        f"{statistics.num_batches} batches, {per_batch:.1f} examples each, {tokens_per_example:.1f} tokens each",
        f"filled: {statistics.token_fill:.1%} of the tokens, {statistics.clip_fill:.1%} of the clip slots",
        percentiles("tokens of an example", statistics.example_tokens, ""),
        percentiles("tokens of an answer", statistics.answer_tokens, ""),
        percentiles("seconds of a clip", statistics.clip_seconds, " s"),
    ]


def format_table(statistics: BatchStatistics, shares: Mapping[str, float]) -> str:
    """Returns the statistics as a table for a terminal."""
    width = max([len("source"), *map(len, statistics.sources)])
    lines = [f"{'source':{width}} {'target':>8} {'examples':>18} {'hours':>18} {'loss tokens':>18}"]
    for row in table_rows(statistics, shares):
        cells = [
            f"{row[unit]:>10.{digits}f} {row[f'{unit}_share']:>7.2%}"
            for unit, digits in (("examples", 0), ("hours", 3), ("loss_tokens", 0))
        ]
        lines.append(f"{row['source']:{width}} {row['target_share']:>8.2%} {' '.join(cells)}")
    return "\n".join([*lines, "", *summary_lines(statistics)])


def write_html(path: Path, statistics: BatchStatistics, shares: Mapping[str, float], title: str) -> None:
    """Writes the statistics as an HTML page with audio players for the samples.

    Args:
      path: path of the page.
      statistics: result of `inspect_batches`.
      shares: target share of each source in the mixture.
      title: heading of the page.
    """
    import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        TEMPLATE.read_text("utf-8")
    )
    page = template.render(
        title=title, rows=table_rows(statistics, shares), summary=summary_lines(statistics), samples=statistics.samples
    )
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, "utf-8")


def _segments(batch: Batch) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the row of each example and the indices of its tokens in the row."""
    for row, numbers in enumerate(batch.segments):
        for number in range(1, int(numbers.max(initial=0)) + 1):
            yield row, np.flatnonzero(numbers == number)
