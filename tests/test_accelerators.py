"""Tests of the choice of JAX's platform on machines with and without an accelerator."""

from __future__ import annotations

import os

import pytest

from salmonn_jax import accelerators


@pytest.mark.parametrize(
    ("has_device", "given", "expected"), [(False, None, "cpu"), (True, None, None), (False, "tpu", "tpu")]
)
def test_cpu_is_chosen_only_without_accelerator_and_setting(monkeypatch, has_device, given, expected):
    monkeypatch.setenv("JAX_PLATFORMS", given or "")
    if given is None:
        monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(accelerators, "has_device", lambda *patterns: has_device)
    accelerators.use_cpu_without_accelerator()
    assert os.environ.get("JAX_PLATFORMS") == expected
