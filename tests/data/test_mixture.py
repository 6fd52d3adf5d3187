"""Shares: exact from the first example on, in every stream; weights in any unit; older sources on top."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from data_pipelines.entries import BadExample
from data_pipelines.examples import Example
from data_pipelines.mixture import Mix, measure, phase, shares
from salmonn_jax.config import DataConfig
from salmonn_jax.configs.salmonn import STAGE2_MIXTURE
from salmonn_jax.errors import UserError

MIXTURES = {
    "the paper's stage 2": STAGE2_MIXTURE,
    "5 % replay": {"speech": 0.95, "text": 0.05},
    "thirds": {"a": 1, "b": 1, "c": 1},
    "uneven": {"a": 5, "b": 3, "c": 1, "d": 1},
    "thirty": {f"{i:02}": (i * 7919 % 31 + 1) ** 2 for i in range(30)},
}


def normalised(weights):
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def drawn(mixture, stream, count):
    """int[count,S]: how often each source had been taken after each of the first draws of a stream."""
    mix, names = Mix(mixture, stream), sorted(mixture)
    taken = [names.index(mix.draw()[0]) for _ in range(count)]
    return np.eye(len(names), dtype=int)[taken].cumsum(axis=0)


@pytest.mark.parametrize("name", MIXTURES)
def test_every_prefix_of_every_stream_has_its_shares(name):
    mixture = normalised(MIXTURES[name])
    targets = np.arange(1, 501)[:, None] * np.array([mixture[source] for source in sorted(mixture)])
    for stream in range(32):
        assert np.abs(drawn(mixture, stream, 500) - targets).max() <= 1 + 1e-9


@pytest.mark.parametrize("hosts", [1, 2, 4, 8, 20, 256])
def test_hosts_have_their_shares(hosts):
    """With a stream each, any prefix of what a host reads is exact. With several, they add up to less than chance."""
    mixture = normalised(STAGE2_MIXTURE)
    share = np.array([mixture[source] for source in sorted(mixture)])
    streams = 20 if hosts == 20 else 256
    counts = np.array([drawn(mixture, stream, 40) for stream in range(streams)])
    targets = np.arange(1, 41)[:, None] * share
    for part in np.split(counts, hosts):
        off = np.abs(part.sum(axis=0) - len(part) * targets).max()
        assert off <= (1 + 1e-9 if len(part) == 1 else 3 * np.sqrt(len(part)))


def test_what_is_rare_does_not_fall_on_the_same_steps_everywhere():
    mixture = {"speech": 0.95, "text": 0.05}
    first = [next(k for k in itertools.count() if drawn(mixture, stream, k + 1)[k, 1]) for stream in range(40)]
    # 20 draws in which the first of it may come; each of them is taken by about two of 40 streams.
    assert max(collections.Counter(first).values()) <= 5 and len(set(first)) >= 15


def test_phases_are_spread_for_every_source():
    for number in range(30):
        phases = np.sort([phase(stream, number) for stream in range(256)])
        assert phases[0] >= -0.5 and phases[-1] < 0.5
        assert np.diff(phases).max() < 8 / 256


def test_a_source_counts_on_from_where_it_was():
    mix = Mix({"a": 0.5, "b": 0.5}, 0)
    taken = [mix.draw() for _ in range(8)]
    for name in "ab":
        assert [count for source, count in taken if source == name] == [0, 1, 2, 3]
    again = Mix({"a": 0.5, "b": 0.5}, 0, mix.state())
    assert [again.draw() for _ in range(9)] == [mix.draw() for _ in range(9)]


def test_shares_may_change_when_a_run_goes_on():
    mix = Mix({"a": 0.9, "b": 0.1}, 3)
    for _ in range(1000):
        mix.draw()
    changed = Mix({"a": 0.5, "b": 0.25, "c": 0.25}, 3, mix.state())
    taken = [changed.draw() for _ in range(100)]
    counts = collections.Counter(name for name, _ in taken)
    assert counts == {"a": 50, "b": 25, "c": 25}
    before = mix.state()["drawn"]
    for name in "abc":  # no example is taken twice, and none is left out
        assert [count for source, count in taken if source == name] == list(
            range(before.get(name, 0), before.get(name, 0) + counts[name])
        )
    assert Mix({"a": 0.5, "b": 0.5}, 3, changed.state()).state()["drawn"]["c"] == 25


CONFIG = DataConfig(mixture={"asr": 3.0, "events": 1.0})


def test_weights_of_examples_are_shares():
    assert shares(CONFIG, {}) == pytest.approx({"asr": 0.75, "events": 0.25})


def test_temperature_makes_small_sources_larger():
    made = shares(dataclasses.replace(CONFIG, temperature=2.0), {})
    assert made["asr"] / made["events"] == pytest.approx(3**0.5)


@pytest.mark.parametrize("unit", ["hours", "tokens"])
def test_weights_in_other_units_are_converted(unit):
    """Three times the hours, or tokens, of examples twice as long: one and a half times the examples."""
    made = shares(dataclasses.replace(CONFIG, unit=unit), {"asr": 20.0, "events": 10.0})
    assert made["asr"] / made["events"] == pytest.approx(1.5)


def test_replay_on_top_and_as_a_share():
    """ForgetSLM's 5 % of each of two older stages is 4.5 % of the examples each."""
    added = shares(dataclasses.replace(CONFIG, replay={"old": 0.05, "text": 0.05}), {})
    assert added["old"] == added["text"] == pytest.approx(0.05 / 1.1)
    assert added["asr"] == pytest.approx(0.75 / 1.1)
    share = shares(dataclasses.replace(CONFIG, replay={"old": 0.05}, replay_as="share"), {})
    assert share == pytest.approx({"asr": 0.95 * 0.75, "events": 0.95 * 0.25, "old": 0.05})


def test_five_percent_of_the_tokens_is_a_twentieth_of_the_examples_where_answers_are_long():
    config = DataConfig(mixture={"asr": 0.95, "text": 0.05}, unit="tokens")
    assert shares(config, {"asr": 30.0, "text": 350.0})["text"] == pytest.approx(0.0045, rel=0.01)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mixture": {}}, "data.mixture names no source"),
        ({"mixture": {"tones": 0.0}}, "weight of source 'tones' is 0.0"),
        ({"replay": {"asr": 0.1}}, "is in data.mixture and in data.replay"),
        ({"replay": {"old": 1.0}, "replay_as": "share"}, "takes 1 of everything"),
        ({"unit": "hours"}, "source 'events' has no hours"),
    ],
)
def test_a_mixture_that_cannot_be(change, says):
    with pytest.raises(UserError, match=says):
        shares(dataclasses.replace(CONFIG, **change), {"asr": 1.0, "events": 0.0})


class Words:
    """A tokenizer of words."""

    def encode(self, text):
        return text.split()


def test_measured_are_examples_spread_over_the_source():
    def example(i):
        if i % 7 == 3:
            raise BadExample("missing", "gone")
        return Example(
            id=str(i), audio=np.zeros(16_000 * (1 + i % 2), np.int16), prompt="", answer="a b c", task="asr", source="x"
        )

    class Source:
        def __len__(self):
            return 1000

        def __getitem__(self, i):
            return example(i)

    assert measure(Source(), "tokens", Words(), 300) == 4
    assert measure(Source(), "tokens", Words(), 2) == 2
    assert 1.2 / 3600 < measure(Source(), "hours", Words(), 300) < 1.8 / 3600
