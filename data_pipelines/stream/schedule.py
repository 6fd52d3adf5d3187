"""The order in which streams take from their sources: shares that are exact in every stream and in all together.

After any k draws a source with share w has been taken k w times, give or take less than one: in every stream; and in
all streams, or in those of a part that they are dealt out to (see below), when these have drawn equally often.

The draws of all streams come first. There the i-th of a source with share w comes after (i - 1)/w draws and before
i/w. (Schedules of tasks on a processor with this property are called P-fair; Baruah et al. 1996.) That order is split
into p parts, the smallest prime factor of the number of streams, and each part again, until a stream is left. Of every
p draws that follow each other a part gets one, and of every p draws of one source that follow each other it gets one
too. So where the whole errs by e, a part errs by e/p + (p - 1)/p at most, which is less than one if e is. There always
is such a split: take every draw for an edge from its p draws to its p draws of a source, and p colours suffice (König
1916).

Orders are made for a period, in which each source has a whole number of draws of each stream. Shares that are all
multiples of 1/n for an n of at most 16,384 have such a period, and every one is the same. For others periods differ by
a draw here and there, so that no stream is ever off by two, nor all n streams together by n + 1.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from salmonn_jax.errors import UserError

LONGEST = 1 << 14  # draws of a period


class Orders:
    """The orders of streams, period by period: a function of the shares and the number of streams.

    Args:
      shares: by source; they sum to one.
      streams: how many there are.
      wanted: those that will be asked for.

    Attributes:
      shares: as they were given.
      names: the sources, sorted.
      period: draws of a stream in a period.

    Raises:
      UserError: a share is less than a draw of the longest period.
    """

    def __init__(self, shares: Mapping[str, float], streams: int, wanted: Collection[int]):
        self.shares, self.names = dict(shares), sorted(shares)
        least = min(self.names, key=lambda name: shares[name])
        if shares[least] < 1 / LONGEST:
            raise UserError(
                f"the share of {least!r} is {shares[least]:.2g} of all; at least {1 / LONGEST:.2g} can be mixed: "
                "give it more weight, put it together with others, or leave it out"
            )
        self._exact = np.array([shares[name] for name in self.names])
        self.period = _period(self._exact)
        # Two periods, for some streams are in the next one already.
        self._deal = functools.lru_cache(2)(lambda parts: _dealt(_fair(np.array(parts)), streams, 0, frozenset(wanted)))

    def order(self, stream: int, period: int) -> np.ndarray:
        """int32[period]: which of the names each draw of a stream takes in a period, counted from 0."""
        parts = _whole(self._exact, self.period * (period + 1)) - _whole(self._exact, self.period * period)
        return self._deal(tuple(parts.tolist()))[stream]


class Mix:
    """The sources of one stream, draw by draw.

    Args:
      orders: of all.
      stream: its number.
      state: of a mix that goes on. If it had other shares, these are exact from here on.
    """

    def __init__(self, orders: Orders, stream: int, state: Mapping[str, Any] | None = None):
        self._orders, self._stream = orders, stream
        state = state or self._begun_at({})
        self.drawn: dict[str, int] = dict.fromkeys(orders.names, 0) | state["drawn"]  # how often it was taken, ever
        # States without a period are of orders that were made otherwise.
        same = state["shares"] == orders.shares and state.get("period") == orders.period
        self._before = dict(state["before"] if same else self.drawn)
        self._place = sum(self.drawn.values()) - sum(self._before.values())
        self._period, self._order = -1, np.zeros(0, np.int32)

    def state(self) -> dict[str, Any]:
        """All that it is, as JSON."""
        return self._begun_at(self._before) | {"drawn": dict(self.drawn)}

    def draw(self) -> tuple[str, int]:
        """The next source, and how often it was taken before."""
        period, place = divmod(self._place, self._orders.period)
        if period != self._period:
            self._period, self._order = period, self._orders.order(self._stream, period)
        name = self._orders.names[self._order[place]]
        self._place += 1
        self.drawn[name] += 1
        return name, self.drawn[name] - 1

    def _begun_at(self, before: Mapping[str, int]) -> dict[str, Any]:
        """The state of a mix that has drawn nothing since `before`."""
        return {"shares": self._orders.shares, "period": self._orders.period, "drawn": before, "before": before}


def _period(shares: np.ndarray) -> int:
    """The shortest period in which all shares are whole; the longest, if none is."""
    periods = np.arange(1, LONGEST + 1)
    exact = periods[:, None] * shares
    whole = (np.abs(np.rint(exact) / exact - 1) < 1e-9).all(axis=1)
    return int(periods[whole][0]) if whole.any() else LONGEST


def _whole(shares: np.ndarray, draws: int) -> np.ndarray:
    """int[S] that sum to so many draws, each less than one from its share of them.

    From one period to the next none decreases, where its share of a period is at least one draw.
    """
    exact = draws * shares
    whole = np.floor(exact).astype(int)
    # What is missing goes to those that lost most.
    whole[np.argsort(whole - exact, kind="stable")[: draws - whole.sum()]] += 1
    return whole


def _fair(parts: np.ndarray) -> np.ndarray:
    """int32[period]: the order in which each source has so many draws; the earliest deadline is first."""
    period = int(parts.sum())
    order = np.empty(period, np.int32)
    begin: list[list[tuple[int, int]]] = [[] for _ in range(period)]  # what may come from a draw on: (source, number)
    begin[0] = [(source, 0) for source in range(len(parts)) if parts[source]]
    waiting: list[tuple[int, int, int]] = []  # (deadline, source, number)
    for draw in range(period):
        for source, number in begin[draw]:
            heapq.heappush(waiting, (-(-(number + 1) * period // int(parts[source])), source, number))
        _, order[draw], number = heapq.heappop(waiting)
        source, following = int(order[draw]), number + 1
        if following < parts[source]:
            begin[max(draw + 1, following * period // int(parts[source]))].append((source, following))
    return order


def _dealt(order: np.ndarray, streams: int, first: int, wanted: Collection[int]) -> dict[int, np.ndarray]:
    """The orders of streams `first` and following, among which this order is dealt out, period after period."""
    if not any(first <= stream < first + streams for stream in wanted):
        return {}
    if streams == 1:
        return {first: order}
    parts = next(p for p in range(2, streams + 1) if streams % p == 0)
    each, found = streams // parts, {}
    for part, its_order in enumerate(_split(order, parts)):
        found |= _dealt(its_order, each, first + part * each, wanted)
    return found


def _split(order: np.ndarray, parts: int) -> list[np.ndarray]:
    """Orders of so many parts, of one period each, among which as many periods of an order are split."""
    order = np.tile(order, parts)
    draws = np.arange(len(order))
    of_source = np.empty_like(draws)
    of_source[np.argsort(order, kind="stable")] = draws
    part = _coloured(draws // parts, of_source // parts, parts)
    return [order[part == i] for i in range(parts)]


def _coloured(left: np.ndarray, right: np.ndarray, degree: int) -> np.ndarray:
    """int[edges]: colours from 0 to `degree` - 1, none twice at a node, of a bipartite graph.

    Args:
      left, right: int[edges], the node of each edge on either side. Every node has `degree` edges.
    """
    colours = np.zeros(len(left), int)
    if degree == 1:
        return colours
    second = ~_matched(left, right, degree) if degree % 2 else _halved(left, right)
    first_colours = 1 if degree % 2 else degree // 2
    colours[~second] = _coloured(left[~second], right[~second], first_colours)
    colours[second] = _coloured(left[second], right[second], degree - first_colours) + first_colours
    return colours


def _matched(left: np.ndarray, right: np.ndarray, degree: int) -> np.ndarray:
    """bool[edges]: one edge of every node (Alon 2003).

    Edges count several times, so that with a few wrong ones every node has a power of two; half of them is left out
    again and again, the half that has more of the wrong ones, until each node has one.
    """
    names, place = np.unique(left, return_inverse=True)
    nodes = np.arange(len(names))
    ends = np.append(place, nodes), np.append(np.unique(right, return_inverse=True)[1], nodes)
    halvings = (degree * len(nodes) - 1).bit_length()
    times, missing = divmod(1 << halvings, degree)
    count = np.repeat([times, missing], [len(left), len(nodes)])
    for _ in range(halvings):
        odd = np.flatnonzero(count % 2)
        upper = odd[_halved(ends[0][odd], ends[1][odd])]
        one, other = count // 2, count - count // 2
        one[upper], other[upper] = other[upper], one[upper]
        count = min(one, other, key=lambda half: half[len(left) :].sum())
    return count[: len(left)] > 0


def _halved(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """bool[edges]: a half of the edges that holds half of those of every node, of which each has an even number."""
    mates = []
    for ends in (left, right):
        by_node, mate = np.argsort(ends, kind="stable"), np.empty(len(ends), int)
        mate[by_node] = by_node.reshape(-1, 2)[:, ::-1].ravel()
        mates.append(mate)
    # Of two mates one is in the half, on the left and on the right: so an edge goes with the mate of its mate.
    edges = np.arange(len(left))
    together = coo_array((np.ones(len(edges), np.int8), (edges, mates[1][mates[0]])), shape=(len(edges),) * 2)
    _, label = connected_components(together, directed=False)
    _, first = np.unique(label, return_index=True)  # of each label its first edge, however scipy numbers them
    return first[label] > first[label[mates[0]]]
