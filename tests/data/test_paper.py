"""Tests of the readers of the paper's corpora, each with a few files in the layout of the distribution."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from data_pipelines.examples import BadExample
from data_pipelines.prepare.shard_writer import to_json_line
from data_pipelines.sources import paper
from data_pipelines.sources.audio import AudioRules, read_clip
from data_pipelines.sources.manifest import to_example
from data_pipelines.sources.manifest_entry import GAP_SAMPLES, AudioSpan, ManifestEntry
from data_pipelines.sources.paper import readers
from salmonn_jax.configs import salmonn
from salmonn_jax.errors import UserError

# TextGrid file as written by the Montreal Forced Aligner, with a tier of words and a tier of phones.
GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0.0
xmax = 1.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        intervals [1]:
            xmin = 0.0
            xmax = 1.0
            text = "go"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        intervals [1]:
            xmin = 0.0
            xmax = 0.3
            text = "sil"
        intervals [2]:
            xmin = 0.3
            xmax = 0.6
            text = "G"
        intervals [3]:
            xmin = 0.6
            xmax = 1.0
            text = "OW1"
"""


def write(folder, name, text):
    """Writes a text file, or a JSON file if `text` is not a string."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")


def write_tone(folder, name, seconds, hertz=440.0):
    """Writes a tone as an audio file and returns it as int16[samples]."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(16_000 * seconds)) / 16_000
    samples = (8_000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)
    soundfile.write(folder / name, samples, 16_000)
    return samples


def read(name, folder, split="train"):
    """Returns the entries of a corpus, and checks that a second reading gives the same entries."""
    entries = list(paper.read(name, folder, split))
    entries_again = list(paper.read(name, folder, split))
    assert [str(entry) for entry in entries] == [str(entry) for entry in entries_again]
    return entries


def audio_entry(id, path, answer, task="audiocaption"):
    """Returns an entry with one audio file and no transcript."""
    return ManifestEntry(id=id, audio=(AudioSpan(path),), answer=answer, task=task)


@pytest.fixture
def librispeech(tmp_path):
    """Returns a LibriSpeech folder with four training utterances, one test utterance and two alignments."""
    write(
        tmp_path,
        "SPEAKERS.TXT",
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "103  | F | train-clean-100  | 20.27 | Karen Savage\n"
        "1034 | M | train-clean-100  | 25.1  | A | B\n",
    )
    for subset in ("train-clean-360", "train-other-500"):
        (tmp_path / subset).mkdir()
    chapter = "train-clean-100/103/1240/103-1240"
    write(tmp_path, f"{chapter}.trans.txt", "103-1240-0000 GO ON\n103-1240-0001 MISSUS LYNDE'S HOUSE\n")
    write(tmp_path, "train-clean-100/1034/1/1034-1.trans.txt", "1034-1-0000 YES\n")
    write(tmp_path, "train-clean-100/999/1/999-1.trans.txt", "999-1-0000 WHO\n")
    write(tmp_path, "test-clean/61/1/61-1.trans.txt", "61-1-0000 HELD OUT\n")
    write(tmp_path, f"{chapter}-0000.TextGrid", GRID)
    write(tmp_path, f"{chapter}-0001.TextGrid", GRID.replace('"G"', '"spn"'))
    return tmp_path


def speech_entry(id, path, words, answer=None, task="asr"):
    """Returns an entry with one audio file and a transcript, which is also the default answer."""
    return ManifestEntry(
        id=id, audio=(AudioSpan(path),), answer=words if answer is None else answer, task=task, transcript=words
    )


def test_librispeech(librispeech):
    chapter = "train-clean-100/103/1240/103-1240"
    assert read("librispeech", librispeech) == [
        speech_entry("103-1240-0000", f"{chapter}-0000.flac", "Go on"),
        speech_entry("103-1240-0001", f"{chapter}-0001.flac", "Missus lynde's house"),
        speech_entry("1034-1-0000", "train-clean-100/1034/1/1034-1-0000.flac", "Yes"),
        speech_entry("999-1-0000", "train-clean-100/999/1/999-1-0000.flac", "Who"),
    ]
    held_out = speech_entry("61-1-0000", "test-clean/61/1/61-1-0000.flac", "Held out")
    assert read("librispeech", librispeech, "test_clean") == [held_out]


def test_librispeech_gender(librispeech):
    """Checks that an utterance of an unknown speaker is rejected and the other utterances are read."""
    chapter, task = "train-clean-100/103/1240/103-1240", "gender_recognition"
    *known, unknown = read("librispeech_gender", librispeech)
    assert known == [
        speech_entry("103-1240-0000", f"{chapter}-0000.flac", "Go on", "Female", task),
        speech_entry("103-1240-0001", f"{chapter}-0001.flac", "Missus lynde's house", "Female", task),
        speech_entry("1034-1-0000", "train-clean-100/1034/1/1034-1-0000.flac", "Yes", "Male", task),
    ]
    assert isinstance(unknown, BadExample) and unknown.reason == "invalid" and "999-1-0000" in str(unknown)


def test_librispeech_phones(librispeech):
    """Checks that utterances without an alignment or with an unknown word are skipped."""
    with pytest.raises(UserError, match=r"train-clean-360 has no \.TextGrid files; .*librispeech-alignments"):
        read("librispeech_phones", librispeech)
    for subset in ("train-clean-360", "train-other-500"):
        write(librispeech, f"{subset}/1/2/1-2-0000.TextGrid", GRID)
    path = "train-clean-100/103/1240/103-1240-0000.flac"
    phones = speech_entry("103-1240-0000", path, "Go on", "G OW1", "phone_recognition")
    assert read("librispeech_phones", librispeech) == [phones]


def test_gigaspeech(tmp_path):
    def segment(sid, begin, end, text, *subsets):
        return {"sid": sid, "begin_time": begin, "end_time": end, "text_tn": text, "subsets": list(subsets)}

    path = "audio/podcast/P0000/POD1.flac"
    segments = [
        segment("POD1_S1", 0.5, 1.25, "IT'S <COMMA> WELL <COMMA> HERE <PERIOD>", "{XL}", "{M}"),
        segment("POD1_S2", 1.25, 2.0, "ONLY IN XL", "{XL}"),
        segment("POD1_S3", 2.0, 2.5, "<MUSIC>", "{M}"),
        {"sid": "POD1_S4", "subsets": ["{M}"]},
        segment("POD1_S5", 2.5, 3, "BYE <EXCLAMATIONPOINT>", "{M}"),
        segment("POD1_S6", 0, 1, "TESTED", "{TEST}"),
    ]
    write(tmp_path, "GigaSpeech.json", {"version": "v1", "audios": [{"path": path, "segments": segments}]})
    first, wrong, last = read("gigaspeech", tmp_path)
    assert first == ManifestEntry(
        id="POD1_S1", audio=(AudioSpan(path, 0.5, 1.25),), answer="It's well here", transcript="It's well here"
    )
    assert isinstance(wrong, BadExample)
    assert last == ManifestEntry(id="POD1_S5", audio=(AudioSpan(path, 2.5, 3.0),), answer="Bye", transcript="Bye")
    assert [entry.id for entry in read("gigaspeech", tmp_path, "test")] == ["POD1_S6"]

    samples = write_tone(tmp_path, path, 3.0)
    clip = read_clip([span._replace(path=str(tmp_path / span.path)) for span in first.audio], AudioRules())
    example = to_example(first, "gigaspeech", clip)
    assert np.array_equal(example.audio[:12_000], samples[8_000:20_000]) and not example.audio[12_000:].any()
    assert (example.answer, example.task, example.source) == ("It's well here", "asr", "gigaspeech")


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


def test_covost2(tmp_path):
    """Checks that quotes in the tab-separated files are kept as text."""
    translations = "path\ttranslation\tsplit\nb.mp3\t他说“再见”。\ttrain_covost\na.mp3\t你好\ttrain\nc.mp3\t不\ttest\n"
    write(tmp_path, "covost_v2.en_zh-CN.tsv", translations)
    sentences = (
        'client_id\tpath\tsentence\n1\ta.mp3\tHello\n2\tb.mp3\t"Bye," he said.\n3\tc.mp3\tNo\n4\td.mp3\tUnused\n'
    )
    write(tmp_path, "validated.tsv", sentences)
    assert read("covost2", tmp_path) == [
        speech_entry("a.mp3", "clips/a.mp3", "Hello", "你好", "translation_ec"),
        speech_entry("b.mp3", "clips/b.mp3", '"Bye," he said.', "他说“再见”。", "translation_ec"),
    ]
    assert [entry.id for entry in read("covost2", tmp_path, "test")] == ["c.mp3"]


def test_iemocap(tmp_path):
    for session in range(1, 6):
        name = f"Ses0{session}F_impro01"
        turns = [("F000", "neu"), ("F001", "fru"), ("M000", "exc"), ("M001", "xxx")]
        lines = [
            f"[{i}.2901 - {i}.9]\t{name}_{turn}\t{emotion}\t[2.5, 2.5, 2.5]\nC-E2:\tSadness;\t()\n"
            for i, (turn, emotion) in enumerate(turns)
        ]
        head = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        write(tmp_path, f"Session{session}/dialog/EmoEvaluation/{name}.txt", head + "\n".join(lines))
        write(tmp_path, f"Session{session}/dialog/EmoEvaluation/._{name}.txt", "resource fork of macOS")
    name = "Ses05F_impro01"
    assert read("iemocap", tmp_path, "test") == [
        audio_entry(f"{name}_F000", f"Session5/sentences/wav/{name}/{name}_F000.wav", "Neutral", "emotion_recognition"),
        audio_entry(f"{name}_M000", f"Session5/sentences/wav/{name}/{name}_M000.wav", "Happy", "emotion_recognition"),
    ]
    assert [entry.id[:5] for entry in read("iemocap", tmp_path)] == [f"Ses0{s}" for s in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_librimix(tmp_path):
    write(tmp_path, "LibriSpeech/test-clean/61/1/61-1.trans.txt", "61-1-0000 ONE VOICE\n61-1-0001 NOBODY\n")
    write(tmp_path, "LibriSpeech/test-clean/84/2/84-2.trans.txt", "84-2-0007 THE OTHER\n")
    table = "mixture_ID,mixture_path,source_1_path,source_2_path,length\n"
    names = ["61-1-0000_84-2-0007", "61-1-0000_7-7-0000"]
    rows = "".join(f"{name},/made/elsewhere/{name}.wav,/x/s1,/x/s2,99\n" for name in names)
    write(tmp_path, "Libri2Mix/wav16k/max/metadata/mixture_test_mix_clean.csv", table + rows)
    mixture, unknown = read("librimix", tmp_path, "test")
    path = f"Libri2Mix/wav16k/max/test/mix_clean/{names[0]}.wav"
    assert mixture == audio_entry(names[0], path, "One voice\nThe other", "speech_separation")
    assert isinstance(unknown, BadExample) and "7-7-0000" in str(unknown)


def paths(entries):
    """Returns [speaker, video, file] of each audio span of each entry."""
    return [[span.path.split("/")[2:] for span in entry.audio] for entry in entries]


def test_voxceleb1_pairs(tmp_path):
    """Checks the generated pairs.

    Pairs of one speaker and of two speakers are equally frequent. A pair of one speaker uses two videos if there are
    two. No utterance is paired with itself.
    """
    utterances = [f"id1/{video}/0000{i}.wav" for video in "abc" for i in (1, 2)]
    utterances += ["id2/a/00001.wav", "id2/a/00002.wav", "id3/a/00001.wav"]
    for name in utterances:
        write(tmp_path, f"dev/wav/{name}", "")
    entries = read("voxceleb1", tmp_path)
    same, other = entries[::2], entries[1::2]
    assert {entry.answer for entry in same} == {"Yes"} and {entry.answer for entry in other} == {"No"}
    assert {entry.task for entry in entries} == {"speaker_verification"}
    assert len({entry.id for entry in entries}) == len(entries)
    firsts = [name.split("/") for name in utterances[:-1]]  # the third speaker has only one utterance
    assert [first for first, _ in paths(same)] == [first for first, _ in paths(other)] == firsts
    for first, second in paths(same):
        assert first[0] == second[0] and first != second and (first[0] == "id2" or first[1] != second[1])
    assert all(first[0] != second[0] for first, second in paths(other))


def test_voxceleb1_trials_are_concatenated(tmp_path):
    write(tmp_path, "veri_test.txt", "1 id9/a/1.wav id9/b/1.wav\n0 id9/a/1.wav id8/a/1.wav\nodd\n")
    same, other, wrong = read("voxceleb1", tmp_path, "test")
    first, second = "test/wav/id9/a/1.wav", "test/wav/id9/b/1.wav"
    spans = (AudioSpan(first), AudioSpan(second))
    assert same == ManifestEntry(id=f"{first}+{second}", audio=spans, answer="Yes", task="speaker_verification")
    assert other.answer == "No" and isinstance(wrong, BadExample)

    clips = write_tone(tmp_path, first, 1.0), write_tone(tmp_path, second, 0.5, hertz=880.0)
    joined = read_clip([span._replace(path=str(tmp_path / span.path)) for span in same.audio], AudioRules())
    assert np.array_equal(joined, np.concatenate([clips[0], np.zeros(GAP_SAMPLES, np.int16), clips[1]]))


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
