"""What a run will really see: read off the batches themselves, not off the configuration."""

from __future__ import annotations

import base64
import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from salmonn_jax.audio_files import encode_flac
from salmonn_jax.batch import Batch
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.prompts import TEXT_SLOT
from salmonn_jax.tokenizer import Tokenizer

TEMPLATE = pathlib.Path(__file__).with_name("inspect.html")


@dataclasses.dataclass
class SourceTotals:
    """Of one source: totals over the batches."""

    examples: int = 0
    hours: float = 0.0
    loss_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example as it is trained on. `flac` is the file, in base64, where it has a clip."""

    source: str
    prompt: str
    answer: str
    seconds: float
    flac: str


@dataclasses.dataclass
class BatchStatistics:
    """What some batches held."""

    num_batches: int = 0
    token_fill: float = 0.0  # shares of what the model computes
    clip_fill: float = 0.0
    sources: dict[str, SourceTotals] = dataclasses.field(default_factory=dict)
    example_tokens: list[int] = dataclasses.field(default_factory=list)  # of each example
    answer_tokens: list[int] = dataclasses.field(default_factory=list)  # tokens of each answer
    clip_seconds: list[float] = dataclasses.field(default_factory=list)  # of each clip
    samples: list[Sample] = dataclasses.field(default_factory=list)


def inspect_batches(
    batches: Iterator[Batch],
    num_batches: int,
    source_names: Sequence[str],
    tokenizer: Tokenizer,
    audio_tokens: int,
    samples_per_source: int,
) -> BatchStatistics:
    """Reads so many batches of one process.

    Args:
      batches: whole ones, as `stream.TrainingData` yields for all streams.
      sources: names by the index in `Batch.source`.
      samples: examples of each source to be kept whole.
    """
    seen = BatchStatistics(sources={name: SourceTotals() for name in source_names})
    kept: collections.Counter[str] = collections.Counter()
    computed = heard = places = 0
    for _ in range(num_batches):
        batch = next(batches)
        computed += batch.segments.size
        heard, places = heard + int((batch.pcm_length > 0).sum()), places + len(batch.pcm)
        for row, at in _segments(batch):
            name = source_names[batch.source_index[row, at[0]]]
            slots = batch.audio_slot[row, at]
            clips = sorted(set((slots[slots != TEXT_SLOT] // max(audio_tokens, 1)).tolist()))
            seconds = float(batch.pcm_length[clips].sum()) / SAMPLE_RATE
            told = batch.loss_mask[row, at]
            source = seen.sources[name]
            source.examples += 1
            source.hours += seconds / 3600
            source.loss_tokens += int(told.sum())
            seen.example_tokens.append(len(at))
            seen.answer_tokens.append(int(told.sum()))
            seen.clip_seconds += [seconds] if clips else []
            if kept[name] < samples_per_source:
                kept[name] += 1
                ids, pcm = batch.tokens[row, at], [batch.pcm[c][: batch.pcm_length[c]] for c in clips]
                asked = ids[~told & (slots == TEXT_SLOT)].tolist()
                seen.samples.append(
                    Sample(
                        name,
                        tokenizer.decode(asked),
                        tokenizer.decode(ids[told].tolist()),
                        seconds,
                        base64.b64encode(encode_flac(np.concatenate(pcm))).decode() if pcm else "",
                    )
                )
    seen.num_batches = num_batches
    seen.token_fill, seen.clip_fill = sum(seen.example_tokens) / computed, heard / places if places else 1.0
    seen.samples.sort(key=lambda sample: sample.source)
    return seen


def table_rows(seen: BatchStatistics, shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """The table: one entry a source, with its share of everything in three units and what the mixture asks for."""
    totals = {f: sum(getattr(s, f) for s in seen.sources.values()) for f in ("examples", "hours", "loss_tokens")}
    return [
        {
            "source": name,
            "asked": shares[name],
            **{unit: getattr(source, unit) for unit in totals},
            **{f"{unit}_share": getattr(source, unit) / total if total else 0.0 for unit, total in totals.items()},
        }
        for name, source in sorted(seen.sources.items())
    ]


def summary_lines(seen: BatchStatistics) -> list[str]:
    """Lines on fill and lengths."""

    def spread(name: str, values: Sequence[float], unit: str) -> str:
        if not values:
            return f"{name}: none"
        low, middle, high, most = np.percentile(values, [5, 50, 95, 100])
        return f"{name}: median {middle:.4g}{unit}, 5 % below {low:.4g}, 5 % above {high:.4g}, longest {most:.4g}"

    examples = len(seen.example_tokens)
    tokens_per_example, per_batch = sum(seen.example_tokens) / max(examples, 1), examples / max(seen.num_batches, 1)
    return [
        f"{seen.num_batches} batches, {per_batch:.1f} examples each, {tokens_per_example:.1f} tokens each",
        f"used: {seen.token_fill:.1%} of the tokens, {seen.clip_fill:.1%} of the clip slots",
        spread("tokens of an example", seen.example_tokens, ""),
        spread("tokens of an answer", seen.answer_tokens, ""),
        spread("seconds of a clip", seen.clip_seconds, " s"),
    ]


def format_table(seen: BatchStatistics, shares: Mapping[str, float]) -> str:
    """For a terminal."""
    width = max([len("source"), *map(len, seen.sources)])
    lines = [f"{'source':{width}} {'asked':>8} {'examples':>18} {'hours':>18} {'loss tokens':>18}"]
    for row in table_rows(seen, shares):
        cells = [
            f"{row[unit]:>10.{digits}f} {row[f'{unit}_share']:>7.2%}"
            for unit, digits in (("examples", 0), ("hours", 3), ("loss_tokens", 0))
        ]
        lines.append(f"{row['source']:{width}} {row['asked']:>8.2%} {' '.join(cells)}")
    return "\n".join([*lines, "", *summary_lines(seen)])


def write_html(path: pathlib.Path, seen: BatchStatistics, shares: Mapping[str, float], title: str) -> None:
    """The same as a page, with examples that can be heard."""
    import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text())
    page = template.render(
        title=title, rows=table_rows(seen, shares), summary=summary_lines(seen), samples=seen.samples
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _segments(batch: Batch) -> Iterator[tuple[int, np.ndarray]]:
    """(row, places) of every example."""
    for row, numbers in enumerate(batch.segments):
        for number in range(1, int(numbers.max(initial=0)) + 1):
            yield row, np.flatnonzero(numbers == number)
