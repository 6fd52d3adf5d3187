"""METEOR, CIDEr-D, SPICE and SPIDEr of captions, with pycocoevalcap (the extra `caption`) and Java.

Captions are tokenised with Stanford's PTB tokenizer and lose their punctuation, as in the evaluation of COCO captions
(Chen et al., arXiv 1504.00325). Without Java, or without the models of SPICE, these metrics are not computed.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from salmonn_jax.errors import import_optional
from salmonn_jax.evaluation.metrics.base import Measurement, Metric, NotComputed, Unit, mean, ratio
from salmonn_jax.evaluation.predictions import Prediction

Captions = dict[int, list[str]]
_SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"


def meteor() -> Metric:
    """Returns METEOR 1.5 over all captions. It is no sum over clips, so it has no interval."""

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        scored, references, captions = _tokenize(predictions)
        scorer = _library("pycocoevalcap.meteor.meteor").Meteor()
        # METEOR's line protocol separates texts by bars.
        clean = {index: [text.replace("|", " ") for text in texts] for index, texts in references.items()}
        value, values = scorer.compute_score(clean, {index: [t.replace("|", " ")] for index, (t,) in captions.items()})
        statistics = np.array([(v, 1.0) for v in values], np.float64).reshape(-1, 2)
        return Measurement(np.array(scored, int), statistics, ratio, corpus_value=float(value))

    return _metric("meteor", "METEOR, higher is better", measure, "percent", _require_tokenizer)


def cider() -> Metric:
    """Returns CIDEr-D (Vedantam et al. 2015), 0 to 10. Document frequencies are those of the references."""

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        scored, references, captions = _tokenize(predictions)
        return mean(scored, _cider_scores(references, captions))

    return _metric("cider", "CIDEr-D, higher is better", measure, "points", _require_tokenizer)


def spice() -> Metric:
    """Returns the mean SPICE F-score over captions (Anderson et al. 2016)."""

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        _require_spice()
        scored, references, captions = _tokenize(predictions)
        return mean(scored, _spice_scores(references, captions))

    return _metric("spice", "SPICE, higher is better", measure, "percent", _require_spice)


def spider() -> Metric:
    """Returns SPIDEr, the mean of CIDEr-D and SPICE (Liu et al. 2017)."""

    def measure(predictions: Sequence[Prediction]) -> Measurement:
        _require_spice()
        scored, references, captions = _tokenize(predictions)
        values = (_cider_scores(references, captions) + _spice_scores(references, captions)) / 2
        return mean(scored, values)

    return _metric("spider", "SPIDEr, higher is better", measure, "points", _require_spice)


def _metric(
    name: str,
    title: str,
    measure: Callable[[Sequence[Prediction]], Measurement],
    unit: Unit,
    require: Callable[[], object],
) -> Metric:
    settings = {"tokenizer": "PTB, without punctuation"}
    return Metric(name, title, measure, unit, settings, ("pycocoevalcap",), require)


def _library(name: str) -> Any:
    """Imports a module of pycocoevalcap. Raises NotComputed without Java."""
    module = import_optional(name, "caption")
    if shutil.which("java") is None:
        raise NotComputed("needs the program java; install a Java runtime")
    return module


def _tokenize(predictions: Sequence[Prediction]) -> tuple[list[int], Captions, Captions]:
    """Returns the indices of the scorable predictions, and their tokenised references and captions by index."""
    scored = [index for index, p in enumerate(predictions) if any(text.strip() for text in p.references)]
    texts = [
        (index, text)
        for index in scored
        for text in (predictions[index].prediction, *filter(str.strip, predictions[index].references))
    ]
    tokenized: Captions = {index: [] for index in scored}
    for (index, _), line in zip(texts, _tokenize_lines([text for _, text in texts]), strict=True):
        tokenized[index].append(line)
    return (
        scored,
        {index: lines[1:] for index, lines in tokenized.items()},
        {index: lines[:1] for index, lines in tokenized.items()},
    )


def _tokenize_lines(texts: Sequence[str]) -> list[str]:
    """Returns each text in lower case, tokenised and without punctuation."""
    library = _library("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = pathlib.Path(library.__file__).with_name(library.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    finished = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input=lines.encode(), capture_output=True, check=False
    )
    if finished.returncode:
        raise NotComputed(f"the PTB tokenizer failed: {' '.join(finished.stderr.decode(errors='replace').split())}")
    punctuation = set(library.PUNCTUATIONS)
    tokenized = finished.stdout.decode().split("\n")[: len(texts)]
    return [" ".join(token for token in line.split(" ") if token not in punctuation).strip() for line in tokenized]


def _cider_scores(references: Captions, captions: Captions) -> np.ndarray:
    return np.asarray(_library("pycocoevalcap.cider.cider").Cider().compute_score(references, captions)[1])


def _require_tokenizer() -> None:
    """Raises UserError or NotComputed if captions cannot be tokenised."""
    _library("pycocoevalcap.tokenizer.ptbtokenizer")


def _require_spice() -> None:
    """Raises NotComputed if the models of SPICE are missing; pycocoevalcap would start to download 300 MB."""
    folder = pathlib.Path(_library("pycocoevalcap.spice.spice").__file__).with_name("lib")
    if not (folder / _SPICE_MODELS).is_file():
        raise NotComputed(f"SPICE needs Stanford CoreNLP 3.6.0: put its jar and {_SPICE_MODELS} into {folder}")


def _spice_scores(references: Captions, captions: Captions) -> np.ndarray:
    try:
        _, scores = _library("pycocoevalcap.spice.spice").Spice().compute_score(references, captions)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotComputed(f"SPICE failed: {' '.join(str(error).split())}") from None
    return np.nan_to_num([score["All"]["f"] for score in scores])
