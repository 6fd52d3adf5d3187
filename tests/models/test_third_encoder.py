"""A third encoder is a folder in `salmonn_jax/models` and a field of `ModelConfig`: no other file changes."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDER = pathlib.Path(__file__).parent / "third_encoder"
IMPORT = "from salmonn_jax.models.whisper.config import WhisperConfig\n"
FIELD = "    qformer: QFormerConfig | None"  # the new field stands before it


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
    """Returns a directory with a copy of the packages, to which the third encoder is added."""
    directory = tmp_path_factory.mktemp("third_encoder")
    for package in ("salmonn_jax", "data_pipelines", "launch"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(FOLDER / "strided", directory / "salmonn_jax/models/strided")
    shutil.copyfile(FOLDER / "checks.py", directory / "checks.py")
    path = directory / "salmonn_jax/config/model.py"
    text = path.read_text()
    assert text.count(IMPORT) == 1 and text.count(FIELD) == 1
    text = text.replace(IMPORT, "from salmonn_jax.models.strided.config import StridedConfig\n" + IMPORT)
    field = '    strided: StridedConfig | None = Field(None, description="a strided convolution")\n'
    path.write_text(text.replace(FIELD, field + FIELD))
    return directory


def run(directory: pathlib.Path, *command: str) -> str:
    """Runs a Python command on the copy of the packages and returns its output. Fails if the command does."""
    env = os.environ | {"PYTHONPATH": str(directory)}
    done = subprocess.run(
        [sys.executable, *command], cwd=directory, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_a_third_encoder_is_a_folder_and_a_field(directory):
    output = run(directory, "-m", "pytest", "-q", "-p", "no:cacheprovider", "checks.py")
    assert " passed" in output


@pytest.mark.slow
def test_a_model_with_a_third_encoder_is_trained_and_loaded(directory):
    trained = run(
        directory,
        *("-m", "launch.train", "debug", "--output", "run", 'model.strided={"hidden_size": 8}'),
        *('trainable=["strided", "norms"]', "num_train_steps=1", "data.data_dir=tones"),
    )
    assert "strided 2,568" in trained  # 320 x 8 weights and 8 biases
    code = (
        "import salmonn_jax; model = salmonn_jax.load('run'); "
        "print(list(model.config.encoders), model.encode_audio('clip.wav').shape)"
    )
    soundfile.write(directory / "clip.wav", np.ones(9000, np.int16), 16_000)
    assert "['whisper', 'beats', 'strided'] (1, 2, 32)" in run(directory, "-c", code)  # 50 frames in windows of 17
