"""Prompts of the corpus of utterances, which say in which language the answer is.

The mini-corpus's own prompts of transcription and of translation into English differ in one word, and a model with a
pretrained language model confuses them.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Sequence

from data_pipelines.examples import Example
from data_pipelines.transforms.prompt_templates import PromptTemplates


@dataclasses.dataclass(frozen=True)
class Prompted:
    """Sequence of examples that get prompts of this corpus. It can be pickled if the sequence of examples can.

    Attributes:
      examples: the examples.
      split: "train" for a wording that the id of an example chooses; other splits get the first one.
    """

    examples: Sequence[Example]
    split: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        if example.audio is None:
            return example
        wording = zlib.crc32(example.id.encode()) if self.split == "train" else 0
        return dataclasses.replace(example, prompt=_templates().render(example.task, "", wording, has_audio=True))


@functools.cache
def _templates() -> PromptTemplates:
    return PromptTemplates.load(str(pathlib.Path(__file__).with_name("prompt_templates.json")))
