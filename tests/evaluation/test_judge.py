"""Tests of the judge against a local server that fails for some answers and replies junk for others."""

from __future__ import annotations

import http.server
import json
import threading
import time

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.scoring import judge as judge_module
from salmonn_jax.evaluation.scoring.judge import Judge, judge_rows
from tests.evaluation.answers import make_prediction


class Server(http.server.ThreadingHTTPServer):
    """OpenAI-compatible server. It accepts what equals a reference, fails for "fail" and replies junk for "junk"."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.address = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, **request})
        self.server.headers.append(dict(self.headers))
        content = json.loads(request["messages"][1]["content"])
        if "fail" in content["answer"]:
            self.send_error(500)
            return
        verdict = "Yes." if content["answer"] in content["correct answers"] else "no"
        verdict = "It depends, yes and no" if "junk" in content["answer"] else verdict
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(judge_module, "RETRY_SECONDS", 0.01)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def predictions_of_a_hundred_answers():
    """Returns 100 predictions: 40 right, 40 wrong, 10 whose request fails and 10 whose reply is junk."""
    answers = [f"{i} is right" for i in range(40)] + [f"{i} is wrong" for i in range(40)]
    answers += [f"{i} fail" for i in range(10)] + [f"{i} junk" for i in range(10)]
    return [
        make_prediction(
            "speech_query", answer.replace("wrong", "right"), answer, id=answer, transcript=f"question {i}?"
        )
        for i, answer in enumerate(answers)
    ]


def judge_all(server, cache_path, predictions):
    client = Judge(server.address + "/", "model-a", cache_path)
    rows = judge_rows(predictions, client)
    client.close()
    return rows, client.failures


def test_failures_are_counted_and_verdicts_are_cached(server, tmp_path):
    predictions = predictions_of_a_hundred_answers()
    (row,), failures = judge_all(server, tmp_path / "judge.jsonl", predictions)
    assert (row.task, row.metric, row.protocol) == ("speech_query", "judge", "salmonn_jax/judge@1")
    assert row.settings == {"judge": "model-a"}
    assert (row.audio.value, row.audio.count, row.audio.unscorable) == (0.5, 80, 20)
    assert row.audio.notes == ("20 of 100 answers are not judged",)
    assert failures == {"HTTP status 500": 10, "a reply that is neither yes nor no": 10}
    assert len(server.requests) == 80 + 10 * judge_module.ATTEMPTS + 10
    server.requests.clear()
    assert judge_all(server, tmp_path / "judge.jsonl", predictions) == ([row], failures)
    assert len(server.requests) == 10 * judge_module.ATTEMPTS + 10  # only those without a verdict are asked again
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 80


def test_a_request_has_texts_and_neither_ids_nor_paths(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    prediction = make_prediction("speech_query", ["1945", "in 1945"], "1946", id="private/id", transcript="when?")
    judge_all(server, tmp_path / "judge.jsonl", [prediction])
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"]) == ("model-a", 0)
    assert json.loads(request["messages"][1]["content"]) == {
        "instruction": "What makes this sound?",
        "words spoken in the recording": "when?",
        "correct answers": ["1945", "in 1945"],
        "answer": "1946",
    }
    assert "private" not in json.dumps(request)
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_empty_answers_and_errors_are_wrong_and_not_sent(server, tmp_path):
    predictions = [
        make_prediction("speech_query", "a", "a", id="1"),
        make_prediction("speech_query", "a", " ?", id="2"),
        make_prediction("speech_query", "a", "", id="3", error="no such file"),
        make_prediction("asr", "a", "a", id="4"),  # not an open task
    ]
    (row,), _ = judge_all(server, tmp_path / "judge.jsonl", predictions)
    assert (row.audio.value, row.audio.count) == (pytest.approx(1 / 3), 3)
    assert len(server.requests) == 1


def test_an_address_without_a_server_is_a_counted_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "RETRY_SECONDS", 0.0)
    start = time.monotonic()
    client = Judge("http://127.0.0.1:9/v1", "m", tmp_path / "judge.jsonl")
    (row,) = judge_rows([make_prediction("QA", "a", "b")], client)
    client.close()
    assert (row.audio.value, row.audio.unscorable) == (None, 1)
    assert row.audio.notes == ("not computed: none of 1 answers is judged",)
    assert client.failures.total() == 1 and next(iter(client.failures)).startswith("no reply")
    assert time.monotonic() - start < 10


def test_a_cut_cache_loses_only_its_last_verdict(server, tmp_path):
    path = tmp_path / "judge.jsonl"
    predictions = [make_prediction("QA", "a", text, id=text) for text in ("a", "b")]
    judge_all(server, path, predictions)
    path.write_bytes(path.read_bytes()[:-5])
    server.requests.clear()
    (row,), _ = judge_all(server, path, predictions)
    assert row.audio.value == 0.5 and len(server.requests) == 1
    assert len(path.read_bytes().splitlines()) == 2


def test_an_address_of_another_kind_raises_user_error(tmp_path):
    with pytest.raises(UserError, match="must be an http:// or https:// address"):
        Judge("file:///etc/passwd", "m", tmp_path / "judge.jsonl")
