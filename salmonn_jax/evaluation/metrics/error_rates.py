"""Error rates over words, characters and phones: edits of all clips divided by units of all references."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

import jiwer
import numpy as np
from scipy.optimize import linear_sum_assignment

from salmonn_jax.errors import import_optional
from salmonn_jax.evaluation.metrics.base import Measurement, Metric, NotComputed
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.text.normalizers import Normalizer, get_normalizer

# Substitutions, deletions, insertions and units of the reference, int64[pairs, 4].
Edits = np.ndarray
_EDIT_NAMES = ("substitutions", "deletions", "insertions")
# A label of a speaker: "Speaker 1", "[spk-2]:", or, with a colon or a bracket, any other word, as in "Speaker A:".
_TURN = re.compile(
    r"(?<!\S)[\[(<]?(?:speaker|spk)[ _-]?(?:(?P<number>\d+)(?!\w)|(?P<name>\w+)(?=\s*[\])>:]))[\])>]?\s*:?",
    re.IGNORECASE,
)
_PACKAGES = {"plain": (), "none": (), "phones": (), "chinese": ("zhconv",)}


def wer(
    normalizer: str = "plain",
    *,
    merge_compounds: bool = False,
    extract: Callable[[str], str] = str,
    title: str = "word error rate, lower is better",
) -> Metric:
    """Returns the word error rate.

    An empty prediction counts as the deletion of every word. With an empty reference, every predicted word counts as an
    insertion. A reference that has characters, but no word after normalisation, cannot be scored. Of several
    references, the one with the lowest error rate counts.

    Args:
      normalizer: name of the normaliser (see `salmonn_jax.evaluation.text.normalizers`).
      merge_compounds: whether neighbouring words that together equal one word count as equal to it, in either text,
        as on the Open ASR leaderboard since June 2026 (kaldialign's `merge_compounds`).
      extract: returns the part of a text that is compared.
      title: see `Metric`.
    """
    count = _count_merged_edits if merge_compounds else _count_word_edits
    settings = {"normalizer": normalizer, **({"compounds": "merged"} if merge_compounds else {})}
    packages = ("kaldialign",) if merge_compounds else ("jiwer",)
    return _error_rate("wer", title, normalizer, extract, count, settings, packages)


def cer(normalizer: str = "plain") -> Metric:
    """Returns the character error rate; as `wer`, with characters, spaces included, in place of words.

    Args:
      normalizer: name of the normaliser. The one of Chinese removes spaces.
    """
    title = "character error rate, lower is better"
    return _error_rate("cer", title, normalizer, str, _count_character_edits, {"normalizer": normalizer}, ("jiwer",))


def per() -> Metric:
    """Returns the phone error rate over phones separated by spaces; as `wer`. The details list the phones in use."""
    title = "phone error rate, lower is better"
    metric = _error_rate("per", title, "phones", str, _count_word_edits, {"normalizer": "phones"}, ("jiwer",))

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        measurement = metric.measure(predictions)
        normalize = get_normalizer("phones")
        known = {phone for p in predictions for text in p.references for phone in normalize(text).split()}
        unknown = {phone for p in predictions for phone in normalize(p.prediction).split()} - known
        details = {"reference_phones": sorted(known), "phones_only_predicted": sorted(unknown)}
        return _replace_details(measurement, details)

    return Metric("per", title, measure, settings=metric.settings, packages=metric.packages)


def permutation_invariant_wer(normalizer: str, *, by_speaker: bool = False) -> Metric:
    """Returns the word error rate under the assignment of predicted to reference streams with the fewest edits.

    A stream that has no counterpart is compared with an empty text. This is the concatenated minimum-permutation word
    error rate of meeteval (cpWER) if a stream is everything that a speaker says.

    Args:
      normalizer: name of the normaliser.
      by_speaker: whether a stream is all turns after the same label, such as "Speaker 1:". Otherwise each line is one.
    """
    split = _speaker_streams if by_speaker else _line_streams

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        normalize = get_normalizer(normalizer)
        rows, scored = [], []
        for index, prediction in enumerate(predictions):
            hypotheses = split(prediction.prediction, normalize)
            edits = [_best_assignment(split(text, normalize), hypotheses) for text in prediction.references]
            scorable = [row for row in edits if row[3]]
            if scorable:
                scored.append(index)
                rows.append(min(scorable, key=lambda row: row[:3].sum() / row[3]))
        return _measurement(np.array(scored, int), np.array(rows, np.float64).reshape(-1, 4))

    title = "word error rate of the best assignment of speakers, lower is better"
    settings = {"normalizer": normalizer, "streams": "speaker labels" if by_speaker else "lines"}
    return Metric("pi_wer", title, measure, settings=settings, packages=("jiwer", *_normalizer_packages(normalizer)))


def _error_rate(
    name: str,
    title: str,
    normalizer: str,
    extract: Callable[[str], str],
    count_edits: Callable[[Sequence[str], Sequence[str]], Edits],
    settings: dict[str, str],
    packages: tuple[str, ...],
) -> Metric:
    def measure(predictions: Sequence[Prediction]) -> Measurement:
        normalize = get_normalizer(normalizer)
        pairs = [  # index of the prediction, reference, prediction
            (index, normalize(extract(reference)), normalize(extract(prediction.prediction)))
            for index, prediction in enumerate(predictions)
            for reference in prediction.references
        ]
        is_blank = {index: not any(p.references) for index, p in enumerate(predictions)}
        pairs = [pair for pair in pairs if pair[1] or is_blank[pair[0]]]
        edits = count_edits([reference for _, reference, _ in pairs], [text for _, _, text in pairs])
        rows, scored = [], []
        by_prediction = itertools.groupby(zip(pairs, edits, strict=True), key=lambda item: item[0][0])
        for index, group in by_prediction:
            scored.append(index)
            rows.append(min((row for _, row in group), key=lambda row: row[:3].sum() / max(1, row[3])))
        return _measurement(np.array(scored, int), np.array(rows, np.float64).reshape(-1, 4))

    return Metric(name, title, measure, settings=settings, packages=packages + _normalizer_packages(normalizer))


def _normalizer_packages(normalizer: str) -> tuple[str, ...]:
    return _PACKAGES.get(normalizer, ("whisper-normalizer",))


def _measurement(scored: np.ndarray, edits: np.ndarray) -> Measurement:
    """Returns the measurement of edits, float64[clips, 4]."""
    totals = edits.sum(axis=0)
    if len(scored) and not totals[3]:
        raise NotComputed("no reference has a word; check the answers of these clips")
    details = {name: int(total) for name, total in zip((*_EDIT_NAMES, "reference_units"), totals, strict=True)}
    return Measurement(scored, edits, _rate, details=details)


def _rate(sums: np.ndarray) -> float:
    return float(sums[:3].sum() / sums[3]) if sums[3] else float("nan")


def _replace_details(measurement: Measurement, details: dict[str, object]) -> Measurement:
    return Measurement(
        measurement.scored, measurement.statistics, measurement.value, details={**measurement.details, **details}
    )


def _count_word_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    return _count_edits(jiwer.process_words, [text.split() for text in references], references, hypotheses)


def _count_character_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    return _count_edits(jiwer.process_characters, references, references, hypotheses)


def _count_edits(
    process: Callable, reference_units: Sequence[Sequence[str]], references: Sequence[str], hypotheses: Sequence[str]
) -> Edits:
    """Counts the edits of each pair of normalised texts with jiwer."""
    counts = np.zeros((len(references), 4))
    counts[:, 3] = [len(units) for units in reference_units]
    if not len(references):
        return counts
    alignments = process(list(references), list(hypotheses)).alignments
    for row, chunks in zip(counts, alignments, strict=True):
        for chunk in chunks:
            row[0] += (chunk.type == "substitute") * (chunk.ref_end_idx - chunk.ref_start_idx)
            row[1] += (chunk.type == "delete") * (chunk.ref_end_idx - chunk.ref_start_idx)
            row[2] += (chunk.type == "insert") * (chunk.hyp_end_idx - chunk.hyp_start_idx)
    return counts


def _count_merged_edits(references: Sequence[str], hypotheses: Sequence[str]) -> Edits:
    """Counts the edits of each pair of normalised texts with kaldialign, compounds merged."""
    edit_distance = import_optional("kaldialign", "score").edit_distance
    rows = [
        edit_distance(reference.split(), hypothesis.split(), merge_compounds=True)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    return np.array([[row[name] for name in ("sub", "del", "ins", "ref_len")] for row in rows]).reshape(-1, 4)


def _line_streams(text: str, normalize: Normalizer) -> list[str]:
    """Returns each line of a text as a stream."""
    return [stream for stream in map(normalize, text.splitlines()) if stream]


def _speaker_streams(text: str, normalize: Normalizer) -> list[str]:
    """Returns what each speaker of a script says, all turns joined. Words before the first label are a stream."""
    labels = list(_TURN.finditer(text))
    streams = {"": normalize(text[: labels[0].start()] if labels else text)}
    for label, following in itertools.zip_longest(labels, labels[1:]):
        speaker = (label["number"] or label["name"]).lower()
        turn = normalize(text[label.end() : following.start() if following else None])
        streams[speaker] = " ".join([streams.get(speaker, ""), turn]).strip()
    return [stream for stream in streams.values() if stream]


def _best_assignment(references: list[str], hypotheses: list[str]) -> np.ndarray:
    """Returns the edits of the assignment with the fewest edits, float64[4]."""
    size = max(len(references), len(hypotheses), 1)
    references = references + [""] * (size - len(references))
    hypotheses = hypotheses + [""] * (size - len(hypotheses))
    pairs = list(itertools.product(references, hypotheses))
    edits = _count_word_edits([r for r, _ in pairs], [h for _, h in pairs]).reshape(size, size, 4)
    rows, columns = linear_sum_assignment(edits[:, :, :3].sum(axis=2))
    return edits[rows, columns].sum(axis=0)
