"""An evaluation from its rows to the merged predictions, exactly once over any number of processes and restarts."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from salmonn_jax import distributed
from salmonn_jax.errors import RunError
from salmonn_jax.evaluation import plan, run_file
from salmonn_jax.evaluation.plan import Rows
from salmonn_jax.evaluation.predict import AnsweringModel, BatchTiming, PredictOptions, predict
from salmonn_jax.evaluation.predictions import (
    MERGED_FILE,
    Condition,
    Prediction,
    PredictionLog,
    find_prediction_files,
    iter_predictions,
    merge_predictions,
    prediction_path,
)
from salmonn_jax.evaluation.preflight import NUM_SAMPLES, Preflight
from salmonn_jax.evaluation.stopping import SIGTERM_REASON, StopSignal
from salmonn_jax.files import GrowingFile, open_growing
from salmonn_jax.paths import Path

MERGE_TIMEOUT_SECONDS = 3600  # how long processes wait for the last batch of the others, and for the merge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Rows to evaluate, and the settings with which they are evaluated.

    Attributes:
      rows: all rows.
      conditions: conditions under which each row with a clip is predicted.
      settings: settings on which the answers depend; they are part of every key.
      sources: data sets, as JSON values for `run.json`, and their names.
      session: what this start runs on, as JSON values for `run.json`.
      options: how predictions are made.
      bucket: see `plan.plan_predictions`.
      preflight: whether the first answers are checked (see `preflight`).
    """

    rows: Rows
    conditions: Sequence[Condition]
    settings: Mapping[str, Any]
    sources: Sequence[Mapping[str, Any]]
    session: Mapping[str, Any]
    options: PredictOptions
    bucket: Callable[[str, bool], int]
    preflight: bool = True

    @property
    def run_settings(self) -> dict[str, Any]:
        """Settings that are compared with those of `run.json`."""
        names = sorted(f"{source['name']}/{source['split']}" for source in self.sources)
        return {**self.settings, "conditions": list(self.conditions), "sources": names}

    def check_settings(self, output: Path) -> None:
        """Raises UserError if the output directory holds an evaluation with other settings."""
        run_file.check_settings(output, self.run_settings)


def run_evaluation(model: AnsweringModel, evaluation: Evaluation, output: Path) -> bool:
    """Makes the missing predictions and merges those of all processes into `predictions.jsonl`.

    Every process calls it. Process 0 merges.

    Args:
      model: the model of this process.
      evaluation: what is evaluated.
      output: output directory, which all processes share.

    Returns:
      Whether the evaluation is finished; False if SIGTERM ended it.

    Raises:
      UserError: the directory holds an evaluation with other settings.
      RunError: the preflight or too many predictions failed, or predictions are missing after all processes ended.
    """
    shard = distributed.process_shard()
    evaluation.check_settings(output)
    items = plan.plan_predictions(
        evaluation.rows,
        distributed.sum_over_processes(plan.hash_clips(evaluation.rows, shard)),
        conditions=evaluation.conditions,
        settings=evaluation.settings,
        bucket=evaluation.bucket,
    )
    evaluation = _choose_batch_size(model, evaluation, items)
    stop_signal = StopSignal(output, shard)
    with stop_signal:
        _start(output, evaluation, stop_signal)
        reason = _predict_share(model, evaluation, items, output, stop_signal)
        if reason:
            stop_signal.request(reason)
        distributed.barrier("all processes have ended their predictions", MERGE_TIMEOUT_SECONDS)
        reason = reason or stop_signal.requested()  # SIGTERM that arrives from here on waits for the merge
        if not reason:
            if distributed.is_main_process():
                _finish(output, evaluation, items, model.num_compilations)
            distributed.barrier("predictions are merged", MERGE_TIMEOUT_SECONDS)
    if reason == SIGTERM_REASON:
        print(f"{output}: SIGTERM ended the evaluation; the same command resumes it", file=sys.stderr)
        return False
    if reason:
        raise RunError(f"{reason} ({output} keeps what was predicted)")
    return True


def _choose_batch_size(model: AnsweringModel, evaluation: Evaluation, items: Sequence[plan.Item]) -> Evaluation:
    """Sets the batch size, and records it and the buckets in the session.

    All predictions count, whether they exist or not, so that a restart has the same batch size.
    """
    options, buckets = evaluation.options, sorted({item.bucket for item in items})
    if options.batch_size is None:
        batch_size = model.max_batch_size(options.generation_config, buckets[-1]) if buckets else 1
        options = dataclasses.replace(options, batch_size=batch_size)
    session = {**evaluation.session, "batch_size": options.batch_size, "prompt_sizes": buckets}
    return dataclasses.replace(evaluation, options=options, session=session)


def _start(output: Path, evaluation: Evaluation, stop_signal: StopSignal) -> None:
    """Writes `run.json` before the first prediction. All processes wait until it is written."""
    if distributed.is_main_process():
        output.mkdir(parents=True, exist_ok=True)
        stop_signal.clear()
        _write_run(output, evaluation, None)
    distributed.barrier("run.json is written")


def _predict_share(
    model: AnsweringModel, evaluation: Evaluation, items: Sequence[plan.Item], output: Path, stop_signal: StopSignal
) -> str:
    """Makes the missing predictions of this process and returns why it stopped early; "" if it did not."""
    index, _ = shard = distributed.process_shard()
    own_path = prediction_path(output, index)
    with (
        PredictionLog(own_path, find_prediction_files(output)) as log,
        contextlib.closing(_open_timing(output / f"timing-{index}.jsonl")) as timing_file,
    ):
        completed = log.completed_keys()
        pending = [item for item in items if item.key not in completed]
        distributed.barrier("all processes know what is missing")  # before any of them writes
        first = NUM_SAMPLES if evaluation.preflight else 0
        batches = plan.own_batches(pending, evaluation.options.batch_size, shard, first=first)
        preflight = Preflight((item for batch in batches for item in batch), first)
        if index == 0:
            made = f", of which {len(items) - len(pending)} are already made" if len(pending) < len(items) else ""
            print(f"{len(evaluation.rows)} rows, {len(items)} predictions{made}", file=sys.stderr)

        def on_batch(predictions: list[Prediction], timing: BatchTiming) -> str:
            timing_file.write(json.dumps(timing._asdict()).encode() + b"\n")
            return preflight.add(predictions)

        options = evaluation.options
        return predict(model, evaluation.rows, batches, log, options, stop_reason=stop_signal.reason, on_batch=on_batch)


def _open_timing(path: Path) -> GrowingFile:
    """Opens the file of batch timings. Predictions are in another file, because they are compared byte by byte."""
    return open_growing(path, len(path.read_bytes()) if path.exists() else 0)


def _finish(output: Path, evaluation: Evaluation, items: Sequence[plan.Item], num_compilations: int) -> None:
    """Merges the predictions, and writes and prints their numbers."""
    evaluation.check_settings(output)  # in a bucket, another job may have started in between
    ids = {item.key: evaluation.rows.fields(item.index)["id"] for item in items}
    num_left_out = merge_predictions(output, ids)
    if num_left_out:
        print(f"{num_left_out} earlier predictions are of rows that changed or are gone; left out", file=sys.stderr)
    counts = count_predictions(iter_predictions(output / MERGED_FILE))
    _write_run(output, evaluation, counts | {"compilations_of_process_0": num_compilations})
    print(describe_counts(counts), file=sys.stderr)


def _write_run(output: Path, evaluation: Evaluation, counts: Mapping[str, Any] | None) -> None:
    run_file.write_run(
        output,
        settings=evaluation.run_settings,
        sources=evaluation.sources,
        session=evaluation.session,
        counts=counts,
    )


def count_predictions(predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Returns the numbers of predictions, of cut answers, of errors by reason, and of clips cut to the window."""
    counts: dict[str, Any] = {"predictions": 0, "cut_at_max_new_tokens": 0, "truncated_clips": 0, "errors": {}}
    errors: collections.Counter[str] = collections.Counter()
    for prediction in predictions:
        counts["predictions"] += 1
        counts["cut_at_max_new_tokens"] += prediction.finish_reason == "length"
        used = prediction.windows[-1][1] if prediction.windows else prediction.audio_seconds
        counts["truncated_clips"] += not prediction.error and used < prediction.audio_seconds
        if prediction.error:
            errors[prediction.error.partition(":")[0]] += 1
    return counts | {"errors": dict(sorted(errors.items()))}


def describe_counts(counts: Mapping[str, Any]) -> str:
    """Returns one line with the counts of `count_predictions`."""
    failed = sum(counts["errors"].values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts["errors"].items())
    parts = [
        f"{counts['predictions']} predictions",
        f"{failed} failed ({reasons})" if failed else "none failed",
        f"{counts['cut_at_max_new_tokens']} answers cut at max_new_tokens" if counts["cut_at_max_new_tokens"] else "",
        f"{counts['truncated_clips']} clips cut to the window" if counts["truncated_clips"] else "",
    ]
    return ", ".join(filter(None, parts))
