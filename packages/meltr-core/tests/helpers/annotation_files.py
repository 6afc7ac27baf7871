"""Tiny data sets in the published forms, written by hand: no code of the readers is used."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

TGIF_CHOICES = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey"
TGIF_FRAME = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription"
CLIPS = {1: "-4wsuPCjDBc_5_15", 2: "-7KMZQEsJW4_205_208", 3: "-8y1Q0rA3n8_108_115", 4: "-8y1Q0rA3n8_95_102"}


def touch(folder: Path, names: Iterable[str]) -> None:
    """Make files that are there but hold nothing: readers of annotations do not open videos."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def write_msvd(root: Path) -> Path:
    """Four clips: two to train on, one to validate, one to test; seven questions."""
    root.mkdir(parents=True, exist_ok=True)
    train = [
        {"answer": "squirrel", "id": 0, "question": "what is eating a nut?", "video_id": 1},
        {"answer": "nut", "id": 1, "question": "what is a squirrel eating?", "video_id": 1},
        {"answer": "man", "id": 2, "question": "who is running?", "video_id": 2},
        {"answer": "man", "id": 3, "question": "who is jumping?", "video_id": 2},
    ]
    validation = [{"answer": "man", "id": 4, "question": "who sings?", "video_id": 3}]
    test = [
        {"answer": "nut", "id": 5, "question": "what falls?", "video_id": 4},
        {"answer": "elephant", "id": 6, "question": "what walks?", "video_id": 4},
    ]
    for name, questions in (("train", train), ("val", validation), ("test", test)):
        (root / f"{name}_qa.json").write_text(json.dumps(questions))
    (root / "youtube_mapping.txt").write_text("".join(f"{name} vid{number}\n" for number, name in CLIPS.items()))
    touch(root / "videos", (f"{name}.avi" for name in CLIPS.values()))
    return root


def write_tgif(root: Path, word: str) -> Path:
    """``action`` and ``transition``: two training questions and one for the test; ``frameqa``: three and two."""
    root.mkdir(parents=True, exist_ok=True)
    if word == "frameqa":
        train = [
            "gif_a\twhat is the color of the shirt ?\tred\t2\tFRAMEQA1\t11\ta man in a red shirt .",
            "gif_b\thow many dogs play ?\ttwo\t1\tFRAMEQA2\t12\ttwo dogs play .",
            "gif_b\twhat do the dogs chase ?\tball\t0\tFRAMEQA3\t12\ttwo dogs chase a ball .",
        ]
        test = [
            "gif_c\twhat is the color of the hat ?\tred\t2\tFRAMEQA4\t13\ta red hat .",
            "gif_c\twhere is the hat ?\tattic\t3\tFRAMEQA5\t13\ta hat is in the attic .",
        ]
        header = TGIF_FRAME
    else:
        train = [
            "gif_a\tWhat does the man do 2 times ?\tjump\tnod head\tskip\tsway\tblink\t1\tX1\t11",
            "gif_b\tWhat does the cat do 3 times ?\tlick\tpaw\tturn\tblink\tjump\t0\tX2\t12",
        ]
        test = ["gif_c\tWhat does the dog do 4 times ?\tsit\tbark\tspin\tshake\twag\t4\tX3\t13"]
        header = TGIF_CHOICES
    for part, lines in (("Train", train), ("Test", test)):
        (root / f"{part}_{word}_question.csv").write_text("\n".join([header, *lines]) + "\n")
    touch(root / "gifs", ("gif_a.gif", "gif_b.gif", "gif_c.gif"))
    return root


def msrvtt_captions(count: int) -> dict[str, list[str]]:
    return {f"video{number}": [f"clip {number} shows a thing", f"thing {number}, moving"] for number in range(count)}


def write_msrvtt(root: Path, form: str) -> Path:
    """Five clips with two captions each: video0 to video2 to train on, video3 and video4 for the test.

    Args:
        root: Folder.
        form: ``clip4clip`` (one json, csv lists), ``challenge`` (two json, csv lists), ``frozen`` (json and lists in
            folders, a pickle with the test captions: second of video3, first of video4).
    """
    captions = msrvtt_captions(5)
    sentences = [
        {"caption": text, "video_id": name, "sen_id": number}
        for number, (name, text) in enumerate((name, text) for name, texts in captions.items() for text in texts)
    ]
    root.mkdir(parents=True, exist_ok=True)
    if form == "frozen":
        notes = [{"image_id": each["video_id"], "caption": each["caption"], "id": each["sen_id"]} for each in sentences]
        (root / "annotation").mkdir()
        (root / "annotation" / "MSR_VTT.json").write_text(json.dumps({"annotations": notes, "images": []}))
        lists = root / "high-quality" / "structured-symlinks"
        lists.mkdir(parents=True)
        (lists / "train_list_jsfusion.txt").write_text("video0\nvideo1\nvideo2\n")
        (lists / "val_list_jsfusion.txt").write_text("video3\nvideo4\n")
        (lists / "jsfusion_val_caption_idx.pkl").write_bytes(pickle.dumps({"video3": 1, "video4": 0}, protocol=2))
    else:
        if form == "clip4clip":
            (root / "MSRVTT_data.json").write_text(json.dumps({"info": {}, "videos": [], "sentences": sentences}))
        else:
            for name, part in (("train_val", sentences[:6]), ("test", sentences[6:])):
                (root / f"{name}_videodatainfo.json").write_text(json.dumps({"videos": [], "sentences": part}))
        for size in ("7k", "9k"):
            (root / f"MSRVTT_train.{size}.csv").write_text("video_id\nvideo0\nvideo1\nvideo2\n")
        (root / "MSRVTT_JSFUSION_test.csv").write_text(
            'key,vid_key,video_id,sentence\nret0,msr3,video3,"thing 3, moving"\nret1,msr4,video4,clip 4 shows a thing\n'
        )
    touch(root / "videos" / "all", (f"{name}.mp4" for name in captions))
    return root


def write_kinetics(root: Path) -> Path:
    """Three training clips of two classes and one of the official validation set, in folders by class."""
    header = ["label", "youtube_id", "time_start", "time_end", "split"]
    write_csv(
        root / "train.csv",
        [
            header,
            ["air drumming", "_dbcJuKJQNs", 40, 50, "train"],
            ["abseiling", "-3B32lodo2M", 59, 69, "train"],
            ["abseiling", "zzzzzzzzzzz", 0, 10, "train"],
        ],
    )
    write_csv(root / "val.csv", [[*header, "is_cc"], ["abseiling", "0347ZoDXyP0", 100, 110, "val", 0]])
    touch(root / "videos" / "train" / "air drumming", ["_dbcJuKJQNs_000040_000050.mp4"])
    touch(root / "videos" / "train" / "abseiling", ["-3B32lodo2M_000059_000069.mp4", "zzzzzzzzzzz_000000_000010.mkv"])
    touch(root / "val", ["0347ZoDXyP0_000100_000110.mp4"])
    return root
