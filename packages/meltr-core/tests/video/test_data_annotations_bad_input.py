"""What is missing, malformed or empty in published annotations: the message names it, the hint says what to do."""

from __future__ import annotations

import pickle
import shutil

import pytest

from annotation_files import touch, write_kinetics, write_msrvtt, write_msvd, write_tgif
from meltr import UserError
from meltr.video.annotations import read


def refused(dataset, task, root, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        read(dataset, task, root, **options)
    return caught.value


def test_without_any_file_the_message_tells_which_file_goes_where(tmp_path):
    error = refused("msvd", "qa", tmp_path)
    assert "4 of 4 annotation files are not in" in error.message
    for name in ("train_qa.json", "val_qa.json", "test_qa.json", "youtube_mapping.txt"):
        assert name in error.message
        assert name in error.hint
    for part in ("videos/", ".avi", "--sample", f"meltr data check --dataset msvd --data-root {tmp_path}", "https://"):
        assert part in error.hint


def test_without_data_root(tmp_path):
    error = refused("msvd", "qa", None)
    assert "--data-root was not given" in error.message
    assert "train_qa.json" in error.hint
    assert "does not exist" in refused("msvd", "qa", tmp_path / "nowhere").message
    assert "is a file, not a folder" in refused("msvd", "qa", write_msvd(tmp_path) / "train_qa.json").message


def test_unknown_data_set_and_task(tmp_path):
    assert "Did you mean 'msvd'?" in refused("msdv", "qa", tmp_path).hint
    assert "Valid choices: qa." in refused("msvd", "retrieval", tmp_path).hint


def test_one_missing_file_is_named_alone(tmp_path):
    root = write_msvd(tmp_path)
    (root / "val_qa.json").unlink()
    error = refused("msvd", "qa", root)
    assert "1 of 4" in error.message
    assert "val_qa.json" in error.message
    assert "train_qa.json" not in error.message


def test_missing_videos_are_counted_and_the_first_named(tmp_path):
    root = write_msvd(tmp_path)
    (root / "videos" / "-7KMZQEsJW4_205_208.avi").unlink()
    error = refused("msvd", "qa", root)
    assert "1 of 4 videos" in error.message
    assert "-7KMZQEsJW4_205_208" in error.message
    assert "--allow-missing" in error.hint


def test_allow_missing_leaves_out_the_examples_and_says_so(tmp_path):
    root = write_msvd(tmp_path)
    (root / "videos" / "-7KMZQEsJW4_205_208.avi").unlink()
    corpus = read("msvd", "qa", root, allow_missing=True)
    assert [item.id for item in corpus.splits["train"]] == ["0", "1"]
    assert corpus.missing == ("-7KMZQEsJW4_205_208",)
    assert "1 of 4 videos are missing; left out: 2 of 4 examples of train." in corpus.notes
    assert "man" in corpus.answers, "the vocabulary is that of the annotations, whatever videos are there"


def test_allow_missing_may_lose_the_test_but_not_the_training_split(tmp_path):
    root = write_msvd(tmp_path)
    (root / "videos" / "-8y1Q0rA3n8_95_102.avi").unlink()
    corpus = read("msvd", "qa", root, allow_missing=True)
    assert list(corpus.splits) == ["train", "validation"]
    assert "so that the split is gone" in corpus.notes[-1]
    touch(root / "videos", ["-8y1Q0rA3n8_95_102.avi"])
    for name in ("-4wsuPCjDBc_5_15", "-7KMZQEsJW4_205_208"):
        (root / "videos" / f"{name}.avi").unlink()
    assert "no training example is left" in refused("msvd", "qa", root, allow_missing=True).message


def test_without_any_video_allow_missing_does_not_help(tmp_path):
    root = write_msvd(tmp_path)
    shutil.rmtree(root / "videos")
    for allow in (False, True):
        error = refused("msvd", "qa", root, allow_missing=allow)
        assert "4 of 4 videos" in error.message
        assert "--allow-missing" not in error.hint


def test_an_empty_split(tmp_path):
    root = write_msvd(tmp_path)
    (root / "val_qa.json").write_text("[]")
    assert "no example for the split validation" in refused("msvd", "qa", root).message
    root = write_tgif(tmp_path / "tgif", "action")
    (root / "Train_action_question.csv").write_text("gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\n")
    assert "split train" in refused("tgif-action", "qa", root).message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": 0,\n "question": }]', "train_qa.json, line 2: not valid JSON"),
        ('{"questions": []}', "train_qa.json: dict instead of a list"),
        ("[3]", "train_qa.json, record 1: int instead of an object"),
        ('[{"id": 0, "question": "what?", "answer": "man"}]', "record 1: no 'video_id'; it has id, question, answer"),
        ('[{"id": 0, "question": "what?", "answer": " ", "video_id": 1}]', "record 1: 'answer' is ' ', not text"),
        ('[{"id": 0, "question": "what?", "answer": "man", "video_id": 9}]', "youtube_mapping.txt has no clip vid9"),
        (b"[\xff\xfe]", "train_qa.json: not UTF-8 text"),
    ],
)
def test_malformed_json(tmp_path, content, message):
    root = write_msvd(tmp_path)
    (root / "train_qa.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused("msvd", "qa", root).message


def test_malformed_mapping(tmp_path):
    root = write_msvd(tmp_path)
    (root / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208\n")
    assert "'-7KMZQEsJW4_205_208' is not a clip and its number" in refused("msvd", "qa", root).message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gif_name\t", "gif\t", "line 1: no column gif_name; the header has gif, question"),
        ("\tblink\t1\t", "\tblink\t", "line 2: 9 fields instead of 10"),
        ("\tblink\t1\t", "\tblink\t5\t", "line 2: answer '5' is not the number of a choice, 0 to 4"),
        ("\tblink\t1\t", "\tblink\tnod head\t", "line 2: answer 'nod head' is not the number of a choice"),
        ("gif_a\t", "\t", "line 2: 'gif_name' is '', not text"),
    ],
)
def test_malformed_csv(tmp_path, old, new, message):
    root = write_tgif(tmp_path, "action")
    path = root / "Train_action_question.csv"
    path.write_text(path.read_text().replace(old, new))
    assert message in refused("tgif-action", "qa", root).message


def test_empty_csv(tmp_path):
    root = write_tgif(tmp_path, "action")
    (root / "Train_action_question.csv").write_text("")
    assert "the file is empty" in refused("tgif-action", "qa", root).message


def test_a_clip_of_the_list_without_caption(tmp_path):
    root = write_msrvtt(tmp_path, "challenge")
    with (root / "MSRVTT_train.9k.csv").open("a") as stream:
        stream.write("video77\n")
    error = refused("msrvtt-9k", "retrieval", root)
    assert "no caption for 1 of the 4 clips of MSRVTT_train.9k.csv: video77" in error.message


def test_msrvtt_without_its_list_of_captions(tmp_path):
    root = write_msrvtt(tmp_path, "clip4clip")
    (root / "MSRVTT_data.json").write_text('{"videos": []}')
    assert "no list 'sentences'" in refused("msrvtt-9k", "retrieval", root).message


def test_caption_indices_must_be_there_and_fit(tmp_path):
    root = write_msrvtt(tmp_path, "frozen")
    indices = root / "high-quality" / "structured-symlinks" / "jsfusion_val_caption_idx.pkl"
    indices.write_bytes(pickle.dumps({"video3": 2, "video4": 0}, protocol=2))
    assert "caption 2 of video3: there are 2" in refused("msrvtt-9k", "retrieval", root).message
    indices.unlink()
    assert "jsfusion_val_caption_idx.pkl is not beside it" in refused("msrvtt-9k", "retrieval", root).message


def test_caption_indices_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("owned",)

    root = write_msrvtt(tmp_path, "frozen")
    indices = root / "high-quality" / "structured-symlinks" / "jsfusion_val_caption_idx.pkl"
    indices.write_bytes(pickle.dumps({"video3": Evil()}))
    assert "was refused" in refused("msrvtt-9k", "retrieval", root).message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",40,", ",forty,", "train.csv, line 2: time_start 'forty' is not a number of seconds"),
        ("air drumming", "", "train.csv, line 2: 'label' is '', not text"),
        ("abseiling", "climbing", "class 'abseiling' of 0347ZoDXyP0_000100_000110 is not in train.csv"),
    ],
)
def test_malformed_kinetics(tmp_path, old, new, message):
    root = write_kinetics(tmp_path)
    path = root / "train.csv"
    path.write_text(path.read_text().replace(old, new))
    assert message in refused("kinetics400", "action", root).message
