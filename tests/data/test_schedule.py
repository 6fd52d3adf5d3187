"""Orders of streams: shares that are exact over any prefix, in every stream, in every host, and in all together."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from data_pipelines.stream import schedule
from data_pipelines.stream.schedule import Mix, Orders
from salmonn_jax.configs.salmonn import STAGE2_MIXTURE
from salmonn_jax.errors import UserError

MIXTURES = {
    "the paper's stage 2": STAGE2_MIXTURE,
    "5 % replay": {"speech": 0.95, "text": 0.05},
    "thirds": {"a": 1, "b": 1, "c": 1},
    "uneven": {"a": 5, "b": 3, "c": 1, "d": 1},
    "thirty": {f"{i:02}": (i * 7919 % 31 + 1) ** 2 for i in range(30)},
    "one": {"a": 1},
}
EVEN = {"a": 0.5, "b": 0.5}


def normalised(weights):
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def largest_error(order, share):
    """How far the count of a source is from its share after any number of draws of an order, at most."""
    counts = (order[:, None] == np.arange(len(share))).cumsum(axis=0)
    return np.abs(counts - np.arange(1, len(order) + 1)[:, None] * share).max()


def of_streams(mixture, streams, wanted=None, periods=1):
    """int[streams,draws]: the orders of streams, of so many periods."""
    wanted = range(streams) if wanted is None else wanted
    orders = Orders(mixture, streams, wanted)
    return np.stack([np.concatenate([orders.order(stream, i) for i in range(periods)]) for stream in wanted])


@pytest.mark.parametrize("hosts", [1, 2, 4, 8, 20, 256])
@pytest.mark.parametrize("name", MIXTURES)
def test_shares_are_exact_over_any_prefix(name, hosts):
    """Of what all hosts read together, of what each reads, and of each stream; over more than a period."""
    mixture = normalised(MIXTURES[name])
    share = np.array([mixture[source] for source in sorted(mixture)])
    streams = 20 if hosts == 20 else 256
    drawn, of_hosts, each = of_streams(mixture, streams), of_streams(mixture, hosts), streams // hosts
    for host in range(0, hosts, 1 + hosts // 32):
        order = np.tile(of_hosts[host], max(2, each))
        assert largest_error(order[: 40 * len(share) * each], share) < 1
        # Its streams draw what follows each other in that order: so it is exact whenever all have drawn equally often.
        own = drawn[host * each : (host + 1) * each]
        rounds = order[: own.size].reshape(-1, each)
        np.testing.assert_array_equal(np.sort(own.T, axis=1), np.sort(rounds, axis=1))
        for stream in own[:: 1 + each // 8]:
            assert largest_error(np.tile(stream, 2), share) < 1


def test_hosts_that_do_not_divide_the_streams_factor_by_factor_are_off_by_few():
    mixture = normalised(STAGE2_MIXTURE)
    share, drawn = np.array([mixture[source] for source in sorted(mixture)]), of_streams(mixture, 20)
    for hosts in (5, 10):
        each = 20 // hosts
        off = [largest_error(part.T.ravel(), share) for part in drawn.reshape(hosts, each, -1)]
        assert 1 < max(off) < each + 1


@pytest.mark.parametrize("replay", [0.03, 0.05 / 7])
def test_shares_that_are_no_fractions_never_drift(replay):
    """Over several periods, in every stream and in all together."""
    mixture = normalised(normalised(STAGE2_MIXTURE) | {"text": replay * 2**0.5})
    share = np.array([mixture[source] for source in sorted(mixture)])
    drawn = of_streams(mixture, 4, periods=5)
    assert drawn.shape == (4, 5 * schedule.LONGEST)
    assert max(largest_error(stream, share) for stream in drawn) < 2
    assert largest_error(drawn.T.ravel(), share) < 4 + 1
    assert largest_error(np.tile(drawn[:, : schedule.LONGEST], 5).T.ravel(), share) > 5  # as it would if all were alike


def test_a_period_is_as_short_as_it_can_be():
    assert Orders(normalised({"a": 1, "b": 1, "c": 1}), 4, [0]).period == 3
    assert Orders(normalised({"a": 0.1, "b": 0.2, "c": 0.7}), 4, [0]).period == 10


def test_an_order_stays_what_it_is():
    """Runs go on with it; no state holds it."""
    text = ["".join("abc"[i] for i in order) for order in of_streams({"a": 0.5, "b": 0.3, "c": 0.2}, 6)]
    assert text == ["cabaababac", "abacbaacba", "baacabcaab", "acbababaca", "bacaacbaab", "ababcaabca"]


def test_all_streams_together_take_no_source_more_often_than_its_share_in_any_step():
    """What is rare does not fall on the same steps everywhere. (Of 40 draws two are 5 %.)"""
    drawn = of_streams({"speech": 0.95, "text": 0.05}, 40)
    assert set((drawn == 1).sum(axis=0)) == {2}


@pytest.mark.parametrize("streams", [1, 2, 6, 15])
def test_a_stream_has_the_same_order_whatever_else_is_wanted(streams):
    everything = of_streams(normalised(MIXTURES["thirty"]), streams)
    for stream, order in enumerate(everything):
        np.testing.assert_array_equal([order], of_streams(normalised(MIXTURES["thirty"]), streams, [stream]))


@pytest.mark.parametrize("colours", [2, 3, 4, 5, 7, 9])
def test_edges_are_coloured_whatever_the_graph(colours):
    random = np.random.default_rng(0)
    left = np.repeat(np.arange(60), colours)
    for _ in range(20):
        right = random.permutation(left)
        found = schedule._coloured(left, right, colours)
        for side in (left, right):
            assert len(set(zip(side, found, strict=True))) == len(left)


def test_a_share_that_is_too_small_is_told():
    with pytest.raises(UserError, match=r"the share of 'rare' is 1e-06 of all; at least 6\.1e-05"):
        Orders(normalised({"a": 300_000, "b": 699_999, "rare": 1}), 4, [0])


def drawn_from(mixture, stream=0, state=None):
    return Mix(Orders(mixture, 4, [stream]), stream, state)


def test_shares_near_the_smallest(monkeypatch):
    """A source that has about a draw of a period has none of some."""
    monkeypatch.setattr(schedule, "LONGEST", 64)
    random, least = np.random.default_rng(0), 1.05 / 64
    for _ in range(10):
        others = random.uniform(0.5, 1.5, 5)
        share = np.array([least, *(others / others.sum() * (1 - least))])
        mixture = dict(zip("abcdef", share.tolist(), strict=True))
        drawn = of_streams(mixture, 2, periods=40)
        assert max(largest_error(stream, share) for stream in drawn) < 2
        assert largest_error(drawn.T.ravel(), share) < 2 + 1
    Orders({"a": 1.001 / 64, "b": 1 - 1.001 / 64}, 2, [0])
    with pytest.raises(UserError, match="the share of 'a'"):
        Orders({"a": 0.999 / 64, "b": 1 - 0.999 / 64}, 2, [0])


def test_periods_that_differ_are_drawn_one_after_another(monkeypatch):
    """And resumed at their ends, with draws taken back, as a stream takes back what is coming."""
    monkeypatch.setattr(schedule, "LONGEST", 64)
    mixture = normalised({"a": np.pi, "b": np.e, "c": 2**0.5})
    expected = [sorted(mixture)[i] for i in of_streams(mixture, 4, [1], periods=4)[0]]
    assert expected[:64] != expected[64:128]
    mix, states, taken = drawn_from(mixture, 1), [], []
    for _ in range(200):
        states.append(json.loads(json.dumps(mix.state())))
        taken.append(mix.draw())
    assert [name for name, _ in taken] == expected[:200]
    for place in range(60, 69):
        later = states[place + 3]
        for name, _ in taken[place : place + 3]:
            later["drawn"][name] -= 1
        again = drawn_from(mixture, 1, later)
        assert [again.draw() for _ in range(100)] == taken[place : place + 100]


def test_a_source_counts_on_from_where_it_was():
    mix = drawn_from(EVEN)
    taken = [mix.draw() for _ in range(8)]
    for name in "ab":
        assert [count for source, count in taken if source == name] == [0, 1, 2, 3]
    mix.draw()
    again = drawn_from(EVEN, state=mix.state())
    assert [again.draw() for _ in range(9)] == [mix.draw() for _ in range(9)]


def test_shares_may_change_when_a_run_goes_on():
    first, second = {"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.25, "c": 0.25}
    mix = drawn_from(first, 3)
    for _ in range(1003):
        mix.draw()
    changed = drawn_from(second, 3, mix.state())
    taken = [changed.draw() for _ in range(100)]
    assert [name for name, _ in taken] == [sorted(second)[i] for i in of_streams(second, 4, [3], periods=25)[0]]
    counts = collections.Counter(name for name, _ in taken)
    assert counts == {"a": 50, "b": 25, "c": 25}
    before = mix.state()["drawn"]
    for name in "abc":  # no example is taken twice, and none is left out
        assert [count for source, count in taken if source == name] == list(
            range(before.get(name, 0), before.get(name, 0) + counts[name])
        )
    again = drawn_from(second, 3, changed.state())
    assert [again.draw() for _ in range(9)] == [changed.draw() for _ in range(9)]
    fewer = drawn_from(EVEN, 3, changed.state())
    assert fewer.state()["drawn"]["c"] == changed.drawn["c"] and {fewer.draw()[0], fewer.draw()[0]} == {"a", "b"}


def test_a_state_of_orders_that_were_made_otherwise_begins_anew():
    """It has no period. No example is taken twice."""
    older = {"shares": EVEN, "drawn": {"a": 7, "b": 4}, "before": {}}
    mix = drawn_from(EVEN, state=older)
    assert sorted(mix.draw() for _ in range(4)) == [("a", 7), ("a", 8), ("b", 4), ("b", 5)]
    assert mix.state()["before"] == {"a": 7, "b": 4}
