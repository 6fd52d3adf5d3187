"""The order in which streams take from their sources: shares that are exact in every stream and in all together.

After any k draws a source with share w has been taken k w times, give or take less than one: in every stream; in all
streams, and in those of a host, that have drawn equally often. Shares are whole numbers of parts of a period, so an
order is laid out once and then repeated.

The draws of all streams come first. There the i-th of a source with share w comes after (i - 1) / w draws and before
i / w. (Tasks that share a processor so are called P-fair; Baruah et al. 1996.) That order is split among as many parts
as the number of streams has for a factor, and each part again, until a stream is left. Of every p draws that follow
each other a part gets one, and of every p draws of one source that follow each other it gets one too. So where the
whole errs by e, a part errs by e / p + (p - 1) / p at most, which is less than one if e is. There always is such a
split: take every draw for an edge from its p draws to its p draws of a source, and p colours suffice (König 1916).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from salmonn_jax.errors import UserError

LONGEST = 1 << 14  # draws of a period


class Mix:
    """The sources of one stream, draw by draw.

    Args:
      shares: by source; they sum to one.
      order: of the stream, from `orders`.
      state: of a mix that goes on. With other shares than it had, shares are exact from here on.
    """

    def __init__(self, shares: Mapping[str, float], order: np.ndarray, state: Mapping[str, Any] | None = None):
        state = state or {"shares": dict(shares), "drawn": {}, "before": {}}
        self.drawn: dict[str, int] = dict.fromkeys(shares, 0) | state["drawn"]  # how often a source was taken, ever
        self._shares, self._names, self._order = dict(shares), sorted(shares), order
        self._before = state["before"] if state["shares"] == self._shares else dict(self.drawn)
        self._place = sum(self.drawn.values()) - sum(self._before.values())

    def state(self) -> dict[str, Any]:
        """All that it is, as JSON."""
        return {"shares": self._shares, "drawn": dict(self.drawn), "before": self._before}

    def draw(self) -> tuple[str, int]:
        """The next source, and how often it was taken before."""
        name = self._names[self._order[self._place % len(self._order)]]
        self._place += 1
        self.drawn[name] += 1
        return name, self.drawn[name] - 1


def orders(shares: Mapping[str, float], streams: int, wanted: Collection[int]) -> dict[int, np.ndarray]:
    """int32[period] by stream, of those wanted: which of the sorted names of the sources each draw takes.

    Raises:
      UserError: a share is less than one draw of a period.
    """
    return _dealt(_fair(_parts(shares)), streams, 0, set(wanted))


def _parts(shares: Mapping[str, float]) -> np.ndarray:
    """int[S]: how many draws of a period each source has. The period is that in which shares are nearest to whole."""
    exact = np.arange(1, LONGEST + 1)[:, None] * np.array([shares[name] for name in sorted(shares)])
    off = np.abs(np.rint(exact) / exact - 1).max(axis=1)
    exact = exact[np.round(off, 9).argmin()]
    parts = np.floor(exact + 1e-6).astype(int)
    # What is missing goes to those that lost most.
    parts[np.argsort(parts - exact, kind="stable")[: round(exact.sum()) - parts.sum()]] += 1
    if not parts.all():
        name = sorted(shares)[int(parts.argmin())]
        raise UserError(
            f"the share of source {name!r} is {shares[name]:.2g} of the examples; at least {1 / LONGEST:.2g} can be "
            "mixed: give it more, or put it into a source with others"
        )
    return parts


def _fair(parts: np.ndarray) -> np.ndarray:
    """int32[period]: the order of a period in which each source has so many draws; the earliest deadline is first."""
    period = int(parts.sum())
    order = np.empty(period, np.int32)
    begin: list[list[tuple[int, int]]] = [[] for _ in range(period)]  # what may come from a draw on: (source, number)
    begin[0] = [(source, 0) for source in range(len(parts))]
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
    return label > label[mates[0]]
