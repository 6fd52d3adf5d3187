"""Reader of CoVoST 2, English to Chinese: translations of Common Voice 4.

Layout of the folder:

    covost_v2.en_zh-CN.tsv          path, translation, split
    validated.tsv                   of Common Voice: path, sentence, ...
    clips/common_voice_en_1.mp3     of Common Voice
"""

from __future__ import annotations

import pathlib

from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper.corpus import ManifestEntries, PaperCorpus
from data_pipelines.sources.paper.readers import TSV, parse_rows, read_csv_rows, require_path

DOWNLOAD_HINT = (
    "CoVoST 2 is at github.com/facebookresearch/covost (CC0), its audio is the English part of Common Voice 4 at "
    "commonvoice.mozilla.org (CC0); set --folder to the folder that contains covost_v2.en_zh-CN.tsv, "
    "validated.tsv and clips/"
)

# CoVoST also trains on clips outside the training split of Common Voice, and marks them "train_covost".
_SPLITS = {"train": {"train", "train_covost"}, "dev": {"dev"}, "test": {"test"}}


def _translations(folder: pathlib.Path, split: str) -> ManifestEntries:
    """Reads the translations, joined to Common Voice by path, in the order of Common Voice."""
    file = require_path(folder, "covost_v2.en_zh-CN.tsv", DOWNLOAD_HINT)
    spoken = read_csv_rows(
        require_path(folder, "validated.tsv", DOWNLOAD_HINT), ("path", "sentence"), DOWNLOAD_HINT, **TSV
    )
    rows = read_csv_rows(file, ("path", "translation", "split"), DOWNLOAD_HINT, **TSV)
    translations = {row["path"]: row["translation"] for row in rows if row["split"] in _SPLITS[split]}

    def parse_row(row: dict[str, str]) -> ManifestEntry:
        path = row["path"]
        return ManifestEntry(
            id=path,
            audio=(AudioSpan(f"clips/{path}"),),
            answer=translations[path].strip(),
            task="translation_ec",
            transcript=row["sentence"].strip(),
        )

    return parse_rows(parse_row, (row for row in spoken if row["path"] in translations))


CORPORA = (
    PaperCorpus(
        name="covost2",
        task="translation_ec",
        read=_translations,
        splits=tuple(_SPLITS),
        hours=430,
        samples=290_000,
        download_hint=DOWNLOAD_HINT,
    ),
)
