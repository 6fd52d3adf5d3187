"""Corpus of short transcribed recordings in 13 languages: the mini-corpus, and 8,800 utterances of Debian packages.

    python -m launch.prepare utterances

The utterances are telephone prompts, dialogues of a game, and spoken captions of drawings. Whole voices are held out.
`prepare` builds the corpus in the directory of the mini-corpus, which it builds too; `open_source` reads it. The
quickstart with pretrained parts trains on it.
"""

from __future__ import annotations

from data_pipelines.utterances.build import SOURCES, notes, open_source, prepare, sources_with_audio, splits

__all__ = ["SOURCES", "notes", "open_source", "prepare", "sources_with_audio", "splits"]
