"""The golden set, converted with its checkpoint and without."""

from __future__ import annotations

import pytest

from launch import convert
from tests.conversion.golden_files import convert_arguments
from tests.golden import MINI


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The converted golden set; tests do not change it."""
    MINI.require()
    output = tmp_path_factory.mktemp("converted") / "model"
    convert.main(convert_arguments(output))
    return output


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The golden set converted without its checkpoint, for a model that reads the audio tokens of the clip alone."""
    MINI.require()
    output = tmp_path_factory.mktemp("untrained") / "model"
    convert.main(
        convert_arguments(
            output, **{"--checkpoint": None, "--qformer-num-attention-heads": None, "--audio-tokens": "clip"}
        )
    )
    return output
