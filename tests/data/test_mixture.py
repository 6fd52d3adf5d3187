"""Tests of the source shares: weights in several units, temperature and replay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.examples import BadExample, Example
from data_pipelines.from_config import mean_example_size
from data_pipelines.stream.mixture import source_shares
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError

CONFIG = DataConfig(mixture={"asr": 3.0, "events": 1.0})


def test_weights_in_examples_are_normalised():
    assert source_shares(CONFIG, {}) == pytest.approx({"asr": 0.75, "events": 0.25})


def test_temperature_upsamples_small_sources():
    shares = source_shares(dataclasses.replace(CONFIG, temperature=2.0), {})
    assert shares["asr"] / shares["events"] == pytest.approx(3**0.5)


@pytest.mark.parametrize("unit", ["hours", "tokens"])
def test_weights_in_hours_or_tokens_are_converted_to_examples(unit):
    """Checks that a source with three times the weight and examples twice as long gets 1.5 times the examples."""
    shares = source_shares(dataclasses.replace(CONFIG, weight_unit=unit), {"asr": 20.0, "events": 10.0})
    assert shares["asr"] / shares["events"] == pytest.approx(1.5)


def test_replay_is_added_or_a_share_of_all_examples():
    """Checks both meanings of `replay`: ForgetSLM adds 5 % of each of two older stages, which gives 4.5 % each."""
    added = source_shares(dataclasses.replace(CONFIG, replay={"old": 0.05, "text": 0.05}), {})
    assert added["old"] == added["text"] == pytest.approx(0.05 / 1.1)
    assert added["asr"] == pytest.approx(0.75 / 1.1)
    share = source_shares(dataclasses.replace(CONFIG, replay={"old": 0.05}, replay_as="share"), {})
    assert share == pytest.approx({"asr": 0.95 * 0.75, "events": 0.95 * 0.25, "old": 0.05})


def test_five_percent_of_the_tokens_is_a_small_share_of_examples_with_long_answers():
    config = DataConfig(mixture={"asr": 0.95, "text": 0.05}, weight_unit="tokens")
    assert source_shares(config, {"asr": 30.0, "text": 350.0})["text"] == pytest.approx(0.0045, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": {}}, "data.mixture names no source"),
        ({"replay": {"asr": 0.1}}, "is in data.mixture and in data.replay"),
        ({"replay": {"old": 1.0}, "replay_as": "share"}, "takes 1 of all examples"),
        ({"weight_unit": "hours"}, "source 'events' has no hours"),
    ],
)
def test_invalid_mixtures_raise_user_error(change, message):
    with pytest.raises(UserError, match=message):
        source_shares(dataclasses.replace(CONFIG, **change), {"asr": 1.0, "events": 0.0})


class WordTokenizer:
    """Tokenizer that splits at white space."""

    def encode(self, text):
        """Returns the words of a text."""
        return text.split()


def test_mean_example_size_samples_the_whole_source_and_skips_bad_examples():
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

    assert mean_example_size(Source(), "tokens", WordTokenizer(), 300) == 4
    assert mean_example_size(Source(), "tokens", WordTokenizer(), 2) == 2
    assert 1.2 / 3600 < mean_example_size(Source(), "hours", WordTokenizer(), 300) < 1.8 / 3600
