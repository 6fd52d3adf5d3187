"""Orders of streams: shares that are exact over any prefix, in every stream, in every host, and in all together."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from data_pipelines import schedule
from data_pipelines.schedule import Mix, orders
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


def of_parts(mixture, parts):
    """The orders of so many parts of all draws, whole as they are before streams are made of them."""
    whole = schedule._fair(schedule._parts(mixture))
    return schedule._dealt(whole, parts, 0, range(parts))


@pytest.mark.parametrize("hosts", [1, 2, 4, 8, 20, 256])
@pytest.mark.parametrize("name", MIXTURES)
def test_shares_are_exact_over_any_prefix(name, hosts):
    """Of what all hosts read together, of what each reads, and of each stream; over more than a period."""
    mixture = normalised(MIXTURES[name])
    share = np.array([mixture[source] for source in sorted(mixture)])
    streams = 20 if hosts == 20 else 256
    of_streams = np.stack([order for _, order in sorted(orders(mixture, streams, range(streams)).items())])
    of_hosts, each = of_parts(mixture, hosts), streams // hosts
    for host in range(0, hosts, 1 + hosts // 32):
        order = np.tile(of_hosts[host], max(2, each))
        assert largest_error(order[: 40 * len(share) * each], share) < 1
        # Its streams draw what follows each other in that order: so it is exact whenever all have drawn equally often.
        own = of_streams[host * each : (host + 1) * each]
        drawn = order[: own.size].reshape(-1, each)
        np.testing.assert_array_equal(np.sort(own.T, axis=1), np.sort(drawn, axis=1))
        for stream in own[:: 1 + each // 8]:
            assert largest_error(np.tile(stream, 2), share) < 1


def test_all_streams_together_take_no_source_more_often_than_its_share_in_any_step():
    """What is rare does not fall on the same steps everywhere."""
    mixture = {"speech": 0.95, "text": 0.05}
    drawn = np.stack(list(orders(mixture, 40, range(40)).values()))
    assert set((drawn == 1).sum(axis=0)) == {2}


@pytest.mark.parametrize("streams", [1, 2, 6, 15])
def test_a_stream_has_the_same_order_whatever_else_is_wanted(streams):
    everything = orders(normalised(MIXTURES["thirty"]), streams, range(streams))
    assert sorted(everything) == list(range(streams))
    for stream, order in everything.items():
        (alone,) = orders(normalised(MIXTURES["thirty"]), streams, [stream]).values()
        np.testing.assert_array_equal(order, alone)


@pytest.mark.parametrize("colours", [2, 3, 4, 5, 7, 9])
def test_edges_are_coloured_whatever_the_graph(colours):
    random = np.random.default_rng(0)
    left = np.repeat(np.arange(60), colours)
    for _ in range(20):
        right = random.permutation(left)
        found = schedule._coloured(left, right, colours)
        for side in (left, right):
            assert len(set(zip(side, found, strict=True))) == len(left)


def test_shares_that_are_no_fractions_are_met_as_nearly_as_a_period_can():
    mixture = normalised({"a": np.pi, "b": np.e, "c": 0.01})
    (order,) = orders(mixture, 1, [0]).values()
    got = np.bincount(order) / len(order)
    assert len(order) <= schedule.LONGEST
    assert got == pytest.approx([mixture[name] for name in "abc"], rel=1e-3)


def test_a_share_that_is_too_small_is_told():
    with pytest.raises(UserError, match=r"the share of source 'rare' is 1e-06 of the examples; at least 6\.1e-05"):
        orders(normalised({"rare": 1, "common": 999_999}), 4, [0])


def test_a_source_counts_on_from_where_it_was():
    (order,) = orders(EVEN, 1, [0]).values()
    mix = Mix(EVEN, order)
    taken = [mix.draw() for _ in range(8)]
    for name in "ab":
        assert [count for source, count in taken if source == name] == [0, 1, 2, 3]
    mix.draw()
    again = Mix(EVEN, order, mix.state())
    assert [again.draw() for _ in range(9)] == [mix.draw() for _ in range(9)]


def test_shares_may_change_when_a_run_goes_on():
    first, second = {"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.25, "c": 0.25}
    mix = Mix(first, orders(first, 4, [3])[3])
    for _ in range(1003):
        mix.draw()
    changed = Mix(second, orders(second, 4, [3])[3], mix.state())
    taken = [changed.draw() for _ in range(100)]
    assert [name for name, _ in taken] == [sorted(second)[i] for i in np.tile(orders(second, 4, [3])[3], 25)]
    counts = collections.Counter(name for name, _ in taken)
    assert counts == {"a": 50, "b": 25, "c": 25}
    before = mix.state()["drawn"]
    for name in "abc":  # no example is taken twice, and none is left out
        assert [count for source, count in taken if source == name] == list(
            range(before.get(name, 0), before.get(name, 0) + counts[name])
        )
    again = Mix(second, orders(second, 4, [3])[3], changed.state())
    assert [again.draw() for _ in range(9)] == [changed.draw() for _ in range(9)]
    fewer = Mix(EVEN, orders(EVEN, 4, [3])[3], changed.state())
    assert fewer.state()["drawn"]["c"] == changed.drawn["c"] and {fewer.draw()[0], fewer.draw()[0]} == {"a", "b"}
