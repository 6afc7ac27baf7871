"""Readers of published annotations on tiny files in the published forms."""

from __future__ import annotations

import json

import pytest

from annotation_files import touch, write_kinetics, write_msrvtt, write_msvd, write_tgif
from meltr.video.annotations import READERS, layout, read
from meltr.video.corpus import Item


def test_msvd(tmp_path):
    corpus = read("msvd", "qa", write_msvd(tmp_path))
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 4, "validation": 1, "test": 2}
    assert corpus.splits["train"][1] == Item(
        media="-4wsuPCjDBc_5_15", id="1", question="what is a squirrel eating?", answer="nut"
    )
    assert corpus.answers == ("man", "nut", "squirrel")
    assert corpus.media["-8y1Q0rA3n8_95_102"] == tmp_path / "videos" / "-8y1Q0rA3n8_95_102.avi"
    assert len(corpus.media) == 4
    assert corpus.missing == ()
    assert corpus.splits["test"][1].answer == "elephant"
    assert corpus.notes == ("Answers outside the vocabulary of 3, kept and always wrong: 1 of 2 in test.",)


def test_msvd_clips_may_have_their_number_as_name(tmp_path):
    root = write_msvd(tmp_path)
    (root / "videos").rename(root / "gone")
    touch(root / "video", [f"vid{number}.mp4" for number in range(1, 5)])
    corpus = read("msvd", "qa", root)
    assert corpus.media["-7KMZQEsJW4_205_208"] == root / "video" / "vid2.mp4"


def test_the_vocabulary_holds_the_most_frequent_answers_then_the_first(tmp_path):
    """1,002 answers: one of them twice, the others once. The last two in the file are out, whatever their name."""
    root = write_msvd(tmp_path)
    answers = [f"word{number:04d}" for number in range(1001, 0, -1)] + ["aaa", "word0500"]
    questions = [{"id": n, "video_id": 1, "question": "what?", "answer": each} for n, each in enumerate(answers)]
    (root / "train_qa.json").write_text(json.dumps(questions))
    corpus = read("msvd", "qa", root)
    assert corpus.answers == tuple(f"word{number:04d}" for number in range(2, 1002))
    assert "2 of 1,003 in train" in corpus.notes[0]


@pytest.mark.parametrize(("dataset", "word"), [("tgif-action", "action"), ("tgif-transition", "transition")])
def test_tgif_with_choices(tmp_path, dataset, word):
    corpus = read(dataset, "qa", write_tgif(tmp_path, word))
    assert list(corpus.splits) == ["train", "test"]
    item = corpus.splits["train"][0]
    assert item.choices == ("jump", "nod head", "skip", "sway", "blink")
    assert (item.correct, item.answer, item.id, item.media) == (1, "nod head", "X1", "gif_a")
    assert [each.correct for each in corpus.splits["test"]] == [4]
    assert corpus.answers == ()
    assert corpus.media["gif_c"] == tmp_path / "gifs" / "gif_c.gif"


def test_tgif_frames(tmp_path):
    corpus = read("tgif-frame", "qa", write_tgif(tmp_path, "frameqa"))
    assert corpus.answers == ("ball", "red", "two")
    assert corpus.splits["train"][2] == Item(
        media="gif_b", id="FRAMEQA3", question="what do the dogs chase ?", answer="ball"
    )
    assert "1 of 2 in test" in corpus.notes[0]


def test_tgif_takes_the_name_of_the_question_from_whichever_column_has_it(tmp_path):
    """Some of the official files have the values of vid_id and key swapped against their header."""
    root = write_tgif(tmp_path, "action")
    path = root / "Train_action_question.csv"
    path.write_text(path.read_text().replace("X1\t11", "11\tX1"))
    assert [item.id for item in read("tgif-action", "qa", root).splits["train"]] == ["X1", "X2"]


@pytest.mark.parametrize(
    ("dataset", "form"),
    [
        ("msrvtt-7k", "clip4clip"),
        ("msrvtt-9k", "clip4clip"),
        ("msrvtt-7k", "challenge"),
        ("msrvtt-9k", "challenge"),
        ("msrvtt-9k", "frozen"),
    ],
)
def test_msrvtt_in_every_published_form(tmp_path, dataset, form):
    corpus = read(dataset, "retrieval", write_msrvtt(tmp_path, form))
    assert list(corpus.splits) == ["train", "test"]
    assert [item.media for item in corpus.splits["train"]] == ["video0", "video1", "video2"]
    assert corpus.splits["train"][1].captions == ("clip 1 shows a thing", "thing 1, moving")
    assert {item.media: item.captions for item in corpus.splits["test"]} == {
        "video3": ("thing 3, moving",),
        "video4": ("clip 4 shows a thing",),
    }
    assert corpus.media["video2"] == tmp_path / "videos" / "all" / "video2.mp4"
    assert corpus.answers == ()


def test_kinetics(tmp_path):
    corpus = read("kinetics400", "action", write_kinetics(tmp_path))
    assert list(corpus.splits) == ["train", "test"]
    assert corpus.answers == ("abseiling", "air drumming")
    assert [item.label for item in corpus.splits["train"]] == ["air drumming", "abseiling", "abseiling"]
    assert corpus.splits["test"][0].media == "0347ZoDXyP0_000100_000110"
    assert corpus.media["zzzzzzzzzzz_000000_000010"].suffix == ".mkv"


def test_a_video_that_is_there_twice_is_taken_by_folder_then_ending(tmp_path):
    root = write_msvd(tmp_path)
    touch(root / "videos", ["-4wsuPCjDBc_5_15.mp4", "-4wsuPCjDBc_5_15.webm", ".-7KMZQEsJW4_205_208.mp4", "notes.txt"])
    touch(root / "YouTubeClips", ["-7KMZQEsJW4_205_208.mp4"])
    media = read("msvd", "qa", root).media
    assert media["-4wsuPCjDBc_5_15"].suffix == ".mp4"
    assert media["-7KMZQEsJW4_205_208"] == root / "videos" / "-7KMZQEsJW4_205_208.avi"


def test_repeated_ids_of_published_files_are_kept_and_numbered(tmp_path):
    root = write_tgif(tmp_path, "action")
    path = root / "Train_action_question.csv"
    path.write_text(path.read_text().replace("\tX2\t", "\tX1\t"))
    corpus = read("tgif-action", "qa", root)
    assert [item.id for item in corpus.splits["train"]] == ["X1", "X1#2"]
    assert corpus.notes == ("1 examples of train repeat the id of another one; kept and numbered.",)


@pytest.mark.parametrize("dataset", READERS)
def test_every_layout_is_complete(dataset):
    found = layout(dataset)
    assert found.dataset == dataset
    needed = {each.role for each in found.files if each.needed}
    assert needed >= set(found.published) or len(needed) == 1  # a file for each split, or one for all
    assert all(each.names[0] in found.text() for each in found.files)
