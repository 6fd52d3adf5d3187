"""`debug`: the real program at a size that compiles and trains in seconds, for tests."""

from __future__ import annotations

RUNS = ()
