"""Options that hold paths: every verb parses them with the shared types, and reads and writes buckets."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pathlib
import sys
import types

import numpy as np
import pytest
import soundfile
from orbax.checkpoint._src.path import gcs_utils

import salmonn_jax
from launch import cli, convert, evaluate, generate, prepare, train
from salmonn_jax import model_directory, paths, weights
from salmonn_jax.config import GenerationConfig
from salmonn_jax.errors import UserError
from salmonn_jax.training import checkpoint
from salmonn_jax.training.metric_writer import FileMetricWriter
from tests import gcs_server
from tests.bucket import FakeBucket
from tests.conversion.golden_files import convert_arguments
from tests.data.test_minicorpus import tone
from tests.runs import losses

LAUNCH = pathlib.Path(cli.__file__).parent
PATH_TYPES = {cli.path, cli.output_path, cli.local_path, cli.file_to_read}
NUMBER_TYPES = {int, float, cli.positive_int, cli.non_negative_int, cli.positive_float, cli.share, cli.lora_multiplier}
GENERATION_FIELDS = {field.name for field in dataclasses.fields(GenerationConfig)}
# Options with text that is not a path. `launch.submit` passes its paths on to the hosts and checks them itself.
TEXT_OPTIONS = {
    "train": {"config", "overrides"},
    "plan": {"config", "topology", "overrides"},
    "evaluate": {"corpus", "splits", "mesh", *GENERATION_FIELDS},
    "generate": {"prompt", *GENERATION_FIELDS},
    "convert": {"prompt", "prompt_template", "lora_target_modules"},
    "prepare": {"split", "name", "config", "overrides", "beam", "corpus", "splits", "mesh", *GENERATION_FIELDS},
    "plan_table": {"only"},
    "score": {"protocol", "by", "judge", "judge_model"},
    "quickstart": {"prompt_template", "overrides"},
    "report": set(),
    "merge": {"only"},
    "forgetting": {"corpus", "splits", "mesh", *GENERATION_FIELDS},
}


class _Parsed(Exception):
    """Carries the parser of a verb, in place of the parsed arguments."""


def parser_of(verb: str, monkeypatch) -> argparse.ArgumentParser:
    """Returns the parser that the verb's `main` builds."""

    def stop(parser, *_, **__):
        raise _Parsed(parser)

    for name in ("parse_args", "parse_intermixed_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    with pytest.raises(_Parsed) as caught:
        importlib.import_module(f"launch.{verb}").main()
    return caught.value.args[0]


def options_of(parser: argparse.ArgumentParser):
    """Yields the options of a parser and of its subparsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from options_of(subparser)
        else:
            yield action


@pytest.mark.parametrize("verb", sorted({p.stem for p in LAUNCH.glob("*.py") if "cli.run(main)" in p.read_text()}))
def test_every_option_with_text_is_a_path_or_known_not_to_be_one(verb, monkeypatch):
    if verb == "submit":
        pytest.skip("the hosts read its paths, not this machine")
    num_paths = 0
    for action in options_of(parser_of(verb, monkeypatch)):
        assert action.type in {None, *NUMBER_TYPES, *PATH_TYPES}, f"{action.dest}: {action.type}"
        num_paths += action.type in PATH_TYPES
        takes_text = action.type is None and action.nargs != 0 and not action.choices
        assert not takes_text or action.dest in TEXT_OPTIONS[verb], f"{action.dest} has no type"
    assert num_paths > 0 or verb == "plan_table"


def run_verb(monkeypatch, verb, *words) -> int:
    """Runs `python -m launch.VERB WORDS` in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", [f"launch.{verb.__name__}", *map(str, words)])
    try:
        cli.run(verb.main)
    except SystemExit as stopped:
        return stopped.code
    return 0


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", ["debug", "--output", "{}"]),
        ("train", ["debug", "--output", "run", "--model", "{}"]),
        ("train", ["debug", "--output", "run", "data.data_dir={}"]),
        ("train", ["debug", "--output", "run", "data.prompt_templates={}"]),
        ("plan", ["debug", "--topology", "v5e-8", "--output", "{}"]),
        ("evaluate", ["--model", "m", "--output", "{}"]),
        ("evaluate", ["--model", "m", "--output", "e", "--data-dir", "{}"]),
        ("score", ["{}"]),
        ("merge", ["{}", "out"]),
        ("forgetting", ["report", "{}", "--output", "out"]),
        ("forgetting", ["report", "forgetting.yml", "--output", "{}"]),
        ("forgetting", ["gate", "{}"]),
        ("merge", ["merge.yml", "{}"]),
        ("score", ["e", "--output", "{}"]),
        ("generate", ["--model", "{}", "--prompt", "p", "a.wav"]),
        ("generate", ["--model", "m", "--prompt", "p", "{}"]),
        ("convert", ["to-jax", "llama", "--llm", "{}", "--output", "m"]),
        ("convert", ["to-jax", "llama", "--llm", "m", "--output", "{}"]),
        ("convert", ["to-torch", "peft", "--model", "m", "--output", "{}"]),
        ("convert", ["inspect", "{}"]),
        ("prepare", ["minicorpus", "--data-dir", "{}"]),
        ("prepare", ["manifest", "{}", "--output", "d"]),
        ("prepare", ["manifest", "m.jsonl", "--output", "{}"]),
        ("prepare", ["manifest", "m.jsonl", "--output", "d", "--tokenizer", "{}"]),
        ("prepare", ["corpus", "librispeech", "--split", "train", "--output", "d", "--folder", "{}"]),
        ("prepare", ["inspect", "debug", "--output", "{}"]),
        ("report", ["{}"]),
        ("report", ["run", "--output", "{}"]),
        ("quickstart", ["--output", "{}"]),
    ],
)
@pytest.mark.parametrize(
    ("url", "message"), [("gss://lab/x", "unknown scheme 'gss'"), ("s3://lab/x", "pip install 'salmonn-jax[s3]'")]
)
def test_an_url_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch, capsys, verb, words, url, message):
    def get(scheme):
        if scheme == "s3":
            raise ImportError("Install s3fs to access S3")
        raise ValueError(f"Protocol not known: {scheme}")

    monkeypatch.setattr(paths.fsspec, "get_filesystem_class", get)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # `launch.plan` sets it
    module = importlib.import_module(f"launch.{verb}")
    assert run_verb(monkeypatch, module, *(word.format(url) for word in words)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ") and message in line and "lab/x" in line
    assert not any(path.name.startswith(("gs", "s3")) for path in tmp_path.rglob("*"))


def test_a_bucket_that_does_not_exist_is_one_line(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_verb(monkeypatch, evaluate, "--model", "m", "--output", "gs://none/e") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gs://none/e cannot be reached (The specified bucket does not exist")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_to_a_bucket_and_again(bucket, debug_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--corpus", "tones", "--data-dir", "tones", "--splits", "test", "--batch-size", "8"]
    words += ["--model", debug_run, "--num-beams", "1", "--max-new-tokens", "4", "--no-preflight", "--output"]
    assert run_verb(monkeypatch, evaluate, *words, "gs://lab/e") == 0
    assert run_verb(monkeypatch, evaluate, *words, f"file://{tmp_path}/e") == 0
    local = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    assert set(local) == {"predictions.jsonl", "scores.json", "index.html", "run.json", "timing-0.jsonl"}
    in_bucket = {name.removeprefix("gs://lab/e/"): content for name, content in bucket.files().items()}
    assert set(in_bucket) == set(local)
    assert all(in_bucket[name] == local[name] for name in local if not name.startswith("timing"))
    # Killed in the middle of a line and started again: the same file.
    paths.as_path("gs://lab/e/predictions.jsonl").write_bytes(local["predictions.jsonl"][:-100])
    assert run_verb(monkeypatch, evaluate, *words, "gs://lab/e") == 0
    assert bucket.files("gs://lab/e/pred")["gs://lab/e/predictions.jsonl"] == local["predictions.jsonl"]
    assert {path.name for path in tmp_path.iterdir()} == {"tones", "e"}


def test_generate_reads_audio_from_a_bucket(bucket, debug_run, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.flac", tone(300, 0.5), 16_000)
    paths.as_path("gs://lab/a.flac").write_bytes((tmp_path / "a.flac").read_bytes())
    words = ["--model", debug_run, "--prompt", "Which tone is this?", "--max-new-tokens", "4"]
    files = ["gs://lab/a.flac", tmp_path / "a.flac", f"file://{tmp_path}/a.flac"]
    assert run_verb(monkeypatch, generate, *words, "--output", "gs://lab/answers.jsonl", *files) == 0
    names, answers = zip(*(line.split("\t") for line in capsys.readouterr().out.splitlines()), strict=True)
    assert names == ("gs://lab/a.flac", str(tmp_path / "a.flac"), str(tmp_path / "a.flac"))
    assert len(set(answers)) == 1
    rows = [json.loads(line) for line in bucket.files()["gs://lab/answers.jsonl"].splitlines()]
    assert [row["path"] for row in rows] == list(names)
    assert run_verb(monkeypatch, generate, *words, "gs://lab/none.flac") == 2
    assert "error: no audio file gs://lab/none.flac" in capsys.readouterr().err


def test_prepare_reads_and_writes_buckets(bucket, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "a.flac", tone(300, 1.0), 16_000)
    (tmp_path / "all.jsonl").write_text('{"audio": "a.flac", "answer": "tone"}\n')
    for name in ("a.flac", "all.jsonl"):
        paths.as_path(f"gs://lab/in/{name}").write_bytes((tmp_path / name).read_bytes())
    for source, output in (("gs://lab/in/all.jsonl", "gs://lab/out"), (tmp_path / "all.jsonl", tmp_path / "out")):
        assert run_verb(monkeypatch, prepare, "manifest", source, "--output", output, "--workers", "1") == 0
    local = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    in_bucket = {url.removeprefix("gs://lab/out/"): data for url, data in bucket.files("gs://lab/out/").items()}
    assert set(in_bucket) == set(local)
    assert all(in_bucket[name] == local[name] for name in local if "array_record" in name or "rejected" in name)
    assert run_verb(monkeypatch, prepare, "inspect", "debug", f"data.data_dir={tmp_path}/tones", "--batches", "1",
                    "--output", "gs://lab/page.html") == 0  # fmt: skip
    assert b"Which tone is this?" in bucket.files()["gs://lab/page.html"]


def test_prompt_templates_in_a_bucket(bucket):
    from data_pipelines.transforms.prompt_templates import PromptTemplates

    paths.as_path("gs://lab/prompts.json").write_text('{"asr": "Write down the words."}')
    assert PromptTemplates.load("gs://lab/prompts.json").by_task == {"asr": ("Write down the words.",)}
    with pytest.raises(UserError, match=r"the prompt templates gs://lab/none\.json cannot be read"):
        PromptTemplates.load("gs://lab/none.json")


@pytest.mark.slow
def test_convert_to_a_bucket(bucket, tmp_path, monkeypatch, capsys):
    convert.main(convert_arguments(tmp_path / "model"))
    convert.main(convert_arguments("gs://lab/model"))
    local = {p.relative_to(tmp_path / "model").as_posix() for p in (tmp_path / "model").rglob("*") if p.is_file()}
    in_bucket = {url.removeprefix("gs://lab/model/"): data for url, data in bucket.files().items()}
    for name in ("config.json", "base.fingerprint", "tokenizer.model"):
        assert in_bucket[name] == (tmp_path / "model" / name).read_bytes()
    # Orbax names some of its files at random.
    assert {name.split("/")[0] for name in in_bucket} == {name.split("/")[0] for name in local}
    assert paths.as_path("gs://lab/model/base/_METADATA").is_file()
    for url, content in bucket.files().items():  # what was uploaded is a model
        path = tmp_path / "copy" / url.removeprefix("gs://lab/model/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    copied = salmonn_jax.load(tmp_path / "copy")
    assert copied.fingerprint == salmonn_jax.load(tmp_path / "model").fingerprint
    assert run_verb(monkeypatch, convert, *convert_arguments("gs://lab/model")) == 2
    assert "gs://lab/model already exists" in capsys.readouterr().err
    assert run_verb(monkeypatch, convert, "inspect", "gs://lab/salmonn.pth") == 2
    assert "gs://lab/salmonn.pth: must be on a local disk; copy it there first" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server():
    """Starts a server of Cloud Storage for tensorstore, which has its own client. It serves the files of `bucket`."""
    server = gcs_server.serve(FakeBucket())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_address[1]}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setattr(gcs_utils, "get_bucket", lambda name: object())  # Orbax asks whether the bucket has folders
        yield server
    server.shutdown()


def test_a_model_in_a_bucket_is_loaded_from_there(bucket, server, debug_run):
    for path in debug_run.rglob("*"):
        if path.is_file():
            paths.as_path(f"gs://lab/run/{path.relative_to(debug_run).as_posix()}").write_bytes(path.read_bytes())
    model = salmonn_jax.load("gs://lab/run")
    assert model.fingerprint == salmonn_jax.load(debug_run).fingerprint


@pytest.mark.slow
def test_train_in_a_bucket_and_go_on(bucket, server, debug_run, tmp_path, monkeypatch, capsys):
    """A run in a bucket, with tensorstore's own client: it goes on and is used as a model."""
    monkeypatch.chdir(tmp_path)
    words = ["debug", "--output", "gs://lab/run", "data.data_dir=tones"]
    assert run_verb(monkeypatch, train, *words) == 0
    assert bucket.exists("gs://lab/run/checkpoints/6/commit_success.txt")
    bucket.rm("gs://lab/run/checkpoints/6", recursive=True)
    assert run_verb(monkeypatch, train, *words) == 0
    assert "gs://lab/run: resuming from step 4 of 6" in capsys.readouterr().err
    metrics = paths.as_path("gs://lab/run/metrics.jsonl").read_text().splitlines()
    found = {line["step"]: (line["loss"], line["gradient_norm"]) for line in map(json.loads, metrics)}
    assert found == losses(debug_run)
    assert salmonn_jax.load("gs://lab/run").fingerprint == salmonn_jax.load(debug_run).fingerprint
    next_run = ["debug", "--model", "gs://lab/run", "--output", "next", "data.data_dir=tones", "num_train_steps=1"]
    assert run_verb(monkeypatch, train, *next_run) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"tones", "next"}


def test_checkpoints_and_weights_reach_orbax_with_their_url(bucket, debug_run, monkeypatch):
    saved = []
    manager = types.SimpleNamespace(all_steps=lambda: [])
    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", lambda path, **_: saved.append(path) or manager)
    checkpoint.Checkpoints(paths.as_path("gs://lab/run"), max_to_keep=1)
    monkeypatch.setattr(weights, "save", lambda path, params: saved.append(path) or "hash")
    base = model_directory.save_base(paths.as_path("gs://lab/run"), {})
    assert list(map(str, saved)) == ["gs://lab/run/checkpoints", "gs://lab/run/base"]
    config = model_directory.read_model_config(debug_run)
    model_directory.write_config_and_tokenizer(paths.as_path("gs://lab/run"), config, base, debug_run)
    assert json.loads(bucket.files()["gs://lab/run/config.json"])["base"] == {"path": "base", "fingerprint": "hash"}
    assert bucket.files()["gs://lab/run/tokenizer.model"] == (debug_run / "tokenizer.model").read_bytes()
    # A run elsewhere that starts from this model refers to it by its URL.
    model_directory.write_config_and_tokenizer(paths.as_path("gs://lab/next"), config, base, debug_run)
    description = model_directory.read_config_json("gs://lab/next")
    assert description["base"]["path"] == "gs://lab/run/base"
    paths.as_path("gs://lab/run/base/_METADATA").write_text("")
    assert str(model_directory.find_base("gs://lab/next", description).path) == "gs://lab/run/base"


def test_metrics_and_events_in_a_bucket(bucket):
    events = {}

    def write(start_step, steps):
        writer = FileMetricWriter(
            paths.as_path("gs://lab/run"),
            name="run",
            start_step=start_step,
            is_evaluated=True,
            num_train_steps=4,
            program_start=0.0,
        )
        for step in steps:
            writer.log(step, {"loss": 1.0 / step, "examples_per_second": 1.0, "audio_seconds_per_second": 1.0})
        writer.flush()
        flushed = bucket.files()["gs://lab/run/metrics.jsonl"]
        writer.close()
        events.update(bucket.files("gs://lab/run/tensorboard/events"))
        assert all(b"loss" in content for content in events.values())
        return [json.loads(line)["step"] for line in flushed.splitlines()]

    assert write(0, [1, 2, 3]) == [1, 2, 3]
    assert write(2, [3, 4]) == [1, 2, 3, 4]  # step 3 is repeated and logged once
    assert events


def test_the_states_of_data_streams_in_a_bucket(bucket):
    handler, directory = checkpoint._StreamStatesHandler(), paths.as_path("gs://lab/run/checkpoints/2/data")
    handler.save(directory, checkpoint.StreamStatesSave({"0": {"next": 3}}))
    assert handler.restore(directory, checkpoint.StreamStatesRestore()) == {"0": {"next": 3}}


def test_sources_in_a_bucket(bucket, tmp_path):
    from data_pipelines import corpora

    soundfile.write(tmp_path / "a.flac", tone(300, 1.0), 16_000)
    paths.as_path("gs://lab/data/a.flac").write_bytes((tmp_path / "a.flac").read_bytes())
    for name in ("mine.jsonl", "other.test.jsonl"):
        paths.as_path(f"gs://lab/data/{name}").write_text('{"audio": "a.flac", "answer": "tone"}\n')
    for data_dir in ("gs://lab/data", "gs://lab/data/"):
        corpus = corpora.open_corpus("files", data_dir)
        assert corpus.evaluation_sources("train") == ["mine"] and corpus.evaluation_sources("test") == ["other"]
        np.testing.assert_array_equal(corpus.open_source("mine", "train")[0].audio, tone(300, 1.0))
    with pytest.raises(UserError, match="unknown scheme 'gss'"):
        corpora.open_corpus("files", "gss://lab/data")
