"""Tests of the readers of the paper's corpora of captions and questions, and of errors that all readers share."""

from __future__ import annotations

import json

import pytest

from data_pipelines.examples import BadExample
from data_pipelines.prepare.shard_writer import to_json_line
from data_pipelines.sources import paper
from data_pipelines.sources.manifest_entry import AudioSpan, ManifestEntry
from data_pipelines.sources.paper import readers
from salmonn_jax.configs import salmonn
from salmonn_jax.errors import UserError
from tests.data.paper_files import audio_entry, read, write


def test_wavcaps(tmp_path):
    """Checks that clips longer than three minutes and clips of other corpora's test sets are skipped."""
    sources = {
        "AudioSet_SL/as": [("YaB-1.wav", 10.0, "A dog barks."), ("YaB-2.wav", 10, "Tested.")],
        "BBC_Sound_Effects/bbc": [("NHU05", 180.0, 'A "laughing" owl, far off.'), ("NHU06", 180.1, "Long.")],
        "FreeSound/fsd": [("17", 2, "Tested."), (18, 2, "Rain falls.")],
        "SoundBible/sb": [("2218", 1.5, "")],
    }
    for name, clips in sources.items():
        data = [{"id": id, "duration": seconds, "caption": caption, "tags": []} for id, seconds, caption in clips]
        write(tmp_path, f"json_files/{name}_final.json", {"num_captions_per_audio": 1, "data": data})
    excluded = {"AudioSet": ["YaB-2.wav"], "FreeSound": ["17"]}
    write(tmp_path, "json_files/blacklist/blacklist_exclude_test_ac.json", excluded)
    assert read("wavcaps", tmp_path) == [
        audio_entry("AudioSet_SL/YaB-1", "AudioSet_SL/YaB-1.flac", "A dog barks."),
        audio_entry("BBC_Sound_Effects/NHU05", "BBC_Sound_Effects/NHU05.flac", 'A "laughing" owl, far off.'),
        audio_entry("FreeSound/18", "FreeSound/18.flac", "Rain falls."),
        audio_entry("SoundBible/2218", "SoundBible/2218.flac", ""),
    ]


def test_audiocaps(tmp_path):
    """Checks that clips are found under several names, and that a missing clip still gives an entry."""
    head = "audiocap_id,youtube_id,start_time,caption\n"
    write(
        tmp_path,
        "val.csv",
        f'{head}1,-ab,130,"Rustling, then a ""quack"""\n2,-ab,130,A duck\n3,cd,0,Wind\n4,ef,0,Rain\n',
    )
    for name in ("-ab.wav", "Ycd.flac", "cd.txt"):
        write(tmp_path, f"val/{name}", "")
    assert read("audiocaps", tmp_path, "dev") == [
        audio_entry("1", "val/-ab.wav", 'Rustling, then a "quack"'),
        audio_entry("2", "val/-ab.wav", "A duck"),
        audio_entry("3", "val/Ycd.flac", "Wind"),
        audio_entry("4", "val/ef.wav", "Rain"),
    ]


def test_clotho(tmp_path):
    head = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    row = '"Rain, heavy.wav","It rains, hard","""Drip""",Rain,Water, It pours \n'
    write(tmp_path, "clotho_captions_development.csv", head + row)
    captions = ["It rains, hard", '"Drip"', "Rain", "Water", "It pours"]
    assert read("clotho", tmp_path) == [
        audio_entry(f"Rain, heavy.wav#caption_{number}", "development/Rain, heavy.wav", caption)
        for number, caption in enumerate(captions, 1)
    ]


def test_musiccaps(tmp_path):
    head = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset"
    test_row = """-0Gj8,30,40,"/m/1,/m/2","['a', 'b']","Slow, sad.\nA flute.",4,False,True"""
    train_row = "ab,0,10,/m/1,[],Fast.,4,True,False"
    write(tmp_path, "musiccaps-public.csv", f"{head},is_audioset_eval\n{test_row}\n{train_row}\n")
    write(tmp_path, "-0Gj8.mp3", "")
    description = audio_entry("-0Gj8", "-0Gj8.mp3", "Slow, sad.\nA flute.", "music_description")
    assert read("musiccaps", tmp_path, "test") == [description]
    assert read("musiccaps", tmp_path) == [audio_entry("ab", "ab.wav", "Fast.", "music_description")]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("librispeech_qa", "LibriSpeech/train-clean-100/1/2/1-2-0000.flac"),
        ("wavcaps_qa", "WavCaps/AudioSet_SL/Yab.flac"),
        ("audiocaps_qa", "AudioCaps/train/ab.wav"),
        ("musicnet_qa", "MusicNet/Preprocess/train/1.wav"),
        ("millionsong_qa", "MillionSongDatasetSpotify/TRA.mp3"),
    ],
)
def test_question_answering_corpora(tmp_path, name, path):
    lines = [
        {"path": f"/{path}", "text": "It is {odd}.", "task": "QA", "Q": 'What, "exactly"?'},
        {"path": "/Clotho/train/1.wav", "text": "Not this.", "task": "QA", "Q": "Which?"},
        {"path": f"/{path}", "text": "Nor this", "task": "asr"},
        {"path": f"/some/disk/{path}", "text": "A woman", "task": "gender_QA", "Q": "Who?"},
        {"path": f"/{path}", "task": "QA", "Q": "No answer?"},
    ]
    write(tmp_path, "salmonn_stage2_data.json", {"annotation": lines})
    first, second, wrong = read(name, tmp_path)
    assert first == ManifestEntry(
        id=f"{path}#0", audio=(AudioSpan(path),), answer="It is {odd}.", task="QA", question='What, "exactly"?'
    )
    assert second == ManifestEntry(
        id=f"{path}#3", audio=(AudioSpan(path),), answer="A woman", task="gender_QA", question="Who?"
    )
    assert isinstance(wrong, BadExample) and "path and text must be strings" in str(wrong)


def test_long_json_arrays_are_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_CHUNK", 20)
    items = [{"id": number, "text": 'ein "Wort" ]} ' * number, "more": [[], {"a": []}]} for number in range(30)]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps({"data": items}, indent=indent))
        assert list(readers.read_json_array(tmp_path / "a.json", "data", ("id",), "somewhere")) == items
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"is truncated or not JSON after .* items; somewhere"):
        list(readers.read_json_array(tmp_path / "a.json", "data", ("id",), "somewhere"))


def test_the_named_configurations_mix_sources_that_can_be_prepared():
    assert set(salmonn.STAGE1_MIXTURE) | set(salmonn.STAGE2_MIXTURE) <= set(paper.PAPER_CORPORA)


@pytest.mark.parametrize("name", paper.PAPER_CORPORA)
def test_missing_files_are_named_with_their_download_site(tmp_path, name):
    corpus = paper.PAPER_CORPORA[name]
    assert corpus.name == name and "\n" not in corpus.download_hint
    for split in corpus.splits:
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(UserError) as caught:
                paper.read(name, folder, split)
            message = str(caught.value)
            assert str(folder) in message and "missing; " in message and "\n" not in message
            assert any(site in message for site in (".org/", ".com/", ".co/", ".edu/", ".ac.uk/"))


def test_a_table_without_an_expected_column_raises_user_error(tmp_path):
    write(tmp_path, "clotho_captions_development.csv", "name,caption\na,b\n")
    with pytest.raises(UserError, match="has no column 'caption_1'; Clotho 2 is at zenodo"):
        list(paper.read("clotho", tmp_path, "train"))


def test_unknown_corpora_and_splits_raise_user_error(tmp_path):
    with pytest.raises(UserError, match="unknown corpus of the paper 'librispeach'; did you mean 'librispeech'"):
        paper.read("librispeach", tmp_path, "train")
    with pytest.raises(UserError, match="unknown split of gigaspeech 'dew'; did you mean 'dev'"):
        paper.read("gigaspeech", tmp_path, "dew")


def test_a_row_that_is_not_utf8_is_rejected(tmp_path):
    """The other rows of the file are read."""
    header, rows = b"ytid,caption,is_audioset_eval\n", (b"a,x,False\n", b"b,caf\xe9,False\n", b"c,y,False\n")
    (tmp_path / "musiccaps-public.csv").write_bytes(header + b"".join(rows))
    first, wrong, last = read("musiccaps", tmp_path)
    assert (first.answer, last.answer) == ("x", "y")
    assert isinstance(wrong, BadExample) and "not Unicode text" in wrong.detail
    assert json.loads(to_json_line({"detail": wrong.detail})) == {"detail": wrong.detail}
