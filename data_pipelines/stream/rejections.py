"""Count of rejections, and the limit at which they end a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from data_pipelines.examples import Rejection
from salmonn_jax.config import DataConfig
from salmonn_jax.errors import UserError

MIN_SAMPLES = 200  # the limit is never computed from fewer samples than this


class RejectionMonitor:
    """Counter of rejections that ends a run if too many of the samples of a host cannot be used.

    Attributes:
      received: samples received by all streams of the host.
      rejected: those of them that cannot be used.
      on_reject: called with each rejection.
    """

    def __init__(self, data: DataConfig):
        self._data = data
        self.received = self.rejected = 0
        self.on_reject: Callable[[Rejection], object] = lambda rejection: None

    def reject(self, rejection: Rejection) -> None:
        """Counts a rejection.

        Raises:
          UserError: the rejections exceed `data.max_bad_share` of the samples by more than three standard deviations;
            the first `MIN_SAMPLES` samples are all rejected; or a clip is too long and `data.too_long` is "error".
        """
        self.rejected += 1
        self.on_reject(rejection)
        if rejection.reason == "too long" and self._data.too_long == "error":
            raise UserError(
                f"example {rejection.example} of {rejection.source} is too long ({rejection.detail}), "
                "and data.too_long is error; shorten it, or set data.too_long to truncate, chunk or drop"
            )
        expected = self._data.max_bad_share * max(self.received, MIN_SAMPLES)
        # The share of a small number of samples may be higher by chance, so three standard deviations are allowed.
        none_usable = self.rejected == self.received >= MIN_SAMPLES  # no batch could ever be made
        if none_usable or self.rejected > expected + 3 * math.sqrt(expected):
            problem = (
                "so no batch can be made; correct them"
                if none_usable
                else f"more than data.max_bad_share={self._data.max_bad_share:g}; correct them or raise this limit"
            )
            raise UserError(
                f"{self.rejected} of {self.received} examples cannot be used, {problem}; the last is example "
                f"{rejection.example} of {rejection.source}, {rejection.reason}: {rejection.detail}"
            )
