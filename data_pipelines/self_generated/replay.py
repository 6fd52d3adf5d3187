"""Rows that ask a language model in text, for replay with its own answers."""

from __future__ import annotations

import hashlib

from data_pipelines.evaluation.rows import NamedSource
from data_pipelines.evaluation.sources import open_rows
from data_pipelines.examples import Example
from salmonn_jax.errors import UserError
from salmonn_jax.paths import Path

TASK = "text"


def open_prompts(path: Path) -> NamedSource:
    """Returns the prompts in the lines of a text file as rows; empty lines and repeated prompts are left out.

    Args:
      path: file in UTF-8. `\\\\n` in a line is a line break.

    Raises:
      UserError: the file is missing, is not UTF-8, or has no prompt.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {error}") from None
    prompts = dict.fromkeys(line.strip().replace("\\n", "\n") for line in lines if line.strip())
    if not prompts:
        raise UserError(f"{path} has no prompt; write one in each line")
    # A row needs an answer; the model gives the one that is kept.
    examples = [
        Example(
            id=hashlib.sha256(prompt.encode()).hexdigest()[:16],
            audio=None,
            prompt=prompt,
            answer=prompt,
            task=TASK,
            source=path.stem,
        )
        for prompt in prompts
    ]
    return NamedSource(path.stem, "train", str(path), open_rows(examples, str(path)))
