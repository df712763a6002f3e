"""Federations from local files and from the hub's layout."""

import gzip
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest

from fedsim.config import Data, Stream
from fedsim.data.federation import count_unseen_labels, load_federation
from fedsim.data.holdings import Holdings
from fedsim.errors import WrongInput

RECORDS = [
    {
        "client": "b",
        "intent": "play",
        "text": "Play jazz",
        "tokens": ["Play", "jazz"],
        "tags": ["O", "B-g"],
    },
    {"client": "a", "intent": "stop", "text": "stop", "tokens": ["stop"], "tags": ["O"]},
    {
        "client": "b",
        "intent": "play",
        "text": "play rock now",
        "tokens": ["play", "rock", "now"],
        "tags": ["O", "B-g", "O"],
    },
]
TEST = [
    {"client": "c", "intent": "play", "text": "play", "tokens": ["play"], "tags": ["O"]},
    {
        "client": "a",
        "intent": "call",
        "text": "call mum",
        "tokens": ["call", "mum"],
        "tags": ["O", "B-p"],
    },
]


def jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jsonl(tmp_path / "train.jsonl", RECORDS)
    jsonl(tmp_path / "test.jsonl", TEST)
    return tmp_path


def files(**settings: object) -> Data:
    return Data.model_validate(
        {"source": "files", "train": "train.jsonl", "test": "test.jsonl"} | settings
    )


def test_a_device_is_its_rows_in_file_order(folder: Path) -> None:
    federation = load_federation(files(), folder)
    assert federation.devices.tolist() == ["a", "b", "c"]
    assert federation.activity.tolist() == [1, 2, 0]
    # words: jazz 2, now 3, play 4, rock 5, stop 6
    assert federation.train("b").fields["tokens"].tolist() == [[4, 2, 0], [4, 5, 3]]
    assert federation.train("b").fields["tags"].tolist() == [[0, 1, -1], [0, 1, 0]]


def test_a_device_s_examples_are_views_of_the_table(folder: Path) -> None:
    federation = load_federation(files(), folder)
    a, b = (federation.train(d).fields["tokens"].untyped_storage().data_ptr() for d in ("a", "b"))
    assert a == b


def test_what_training_never_saw_comes_behind_what_a_model_can_say(folder: Path) -> None:
    federation = load_federation(files(), folder)
    assert federation.spec.labels == ("play", "stop")
    assert federation.spec.labels_unseen == ("call",)
    assert federation.spec.tags_unseen == ("B-p",)
    assert federation.test is not None
    assert federation.test.fields["label"].tolist() == [0, 2]
    assert federation.test.fields["tokens"].tolist() == [[4, 0], [1, 1]]
    assert count_unseen_labels(federation) == 1


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv", "parquet"])
def test_other_formats_give_the_same_federation(folder: Path, ending: str) -> None:
    wanted = (
        load_federation(files(task="classification", test=""), folder).train("b").fields["tokens"]
    )
    table = datasets.Dataset.from_list(
        [{k: r[k] for k in ("client", "intent", "text")} for r in RECORDS]
    )
    path = folder / f"other.{ending}"
    if ending == "csv":
        table.to_csv(path)
    elif ending == "parquet":
        table.to_parquet(path)
    else:
        path.write_bytes(gzip.compress((folder / "train.jsonl").read_bytes()))
    found = load_federation(files(task="classification", train=path.name, test=""), folder)
    assert found.train("b").fields["tokens"].tolist() == wanted.tolist()


def test_tags_in_csv_are_split_at_spaces(folder: Path) -> None:
    (folder / "t.csv").write_text("client,intent,tokens,tags\nb,play,Play jazz,O B-g\n")
    federation = load_federation(files(train="t.csv", test=""), folder)
    assert federation.train("b").fields["tags"].tolist() == [[0, 1]]


def test_a_split_column_divides_one_file(folder: Path) -> None:
    records = [
        r | {"split": s}
        for r, s in zip(RECORDS + TEST, ["train"] * 3 + ["test", "valid"], strict=True)
    ]
    jsonl(folder / "all.jsonl", records)
    federation = load_federation(files(train="all.jsonl", test=""), folder)
    assert federation.activity.sum() == 3
    assert federation.test is not None
    assert federation.dev is not None
    assert (len(federation.test), len(federation.dev)) == (1, 1)


def test_images_come_from_npz(tmp_path: Path) -> None:
    pixels = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    np.savez(tmp_path / "x.npz", pix=pixels, y=np.array([1, 0, 1, 1]), hand=np.array([7, 7, 8, 8]))
    data = Data(
        source="files", task="image", train="x.npz", columns="image=pix,label=y,device=hand+y"
    )
    federation = load_federation(data, tmp_path)
    assert federation.spec.image == (1, 2, 3)
    assert federation.devices.tolist() == ["7-0", "7-1", "8-1"]
    image = federation.train("8-1").fields["image"]
    assert image.shape == (2, 1, 2, 3)
    assert float(image[0, 0, 0, 1]) == pytest.approx(13 / 255)


def test_records_without_a_label_or_device_are_left_out_and_said(folder: Path) -> None:
    jsonl(
        folder / "gaps.jsonl",
        [RECORDS[0], RECORDS[1] | {"client": None}, RECORDS[2] | {"intent": None}],
    )
    federation = load_federation(files(train="gaps.jsonl"), folder)
    assert federation.activity.sum() == 1
    assert "1 records of train (gaps.jsonl) have no label: left out" in federation.notes
    assert "1 records of train (gaps.jsonl) have no device: left out" in federation.notes


def test_long_examples_are_cut_and_said(folder: Path) -> None:
    federation = load_federation(files(max_length=2), folder)
    assert federation.train("b").fields["tokens"].shape == (2, 2)
    assert federation.notes == ("1 examples were cut to data.max_length = 2",)


def test_a_local_folder_in_the_hub_s_layout_is_read_by_the_hub_s_code(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["play", "stop"])
    features = datasets.Features(
        {"client": datasets.Value("string"), "intent": labels, "text": datasets.Value("string")}
    )
    rows = [{k: r[k] for k in ("client", "intent", "text")} for r in RECORDS]
    table = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        table.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    data = Data(source="hub", task="classification", path=str(tmp_path / "set"))
    federation = load_federation(data, None)
    assert federation.spec.labels == ("play", "stop")
    assert federation.dev is not None
    assert federation.test is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"path": "none"}, "does not exist"),
        ({"train": ""}, "data.train names no file; the folder has broken.jsonl"),
        ({"train": "x*.jsonl"}, "no file 'x*.jsonl'"),
        ({"columns": "label=intnt"}, "has no column 'intnt'"),
        ({"columns": "label=intnt"}, "did you mean 'intent'?"),
        ({"columns": "lable=intent"}, "unknown role 'lable'"),
        ({"columns": "device="}, "has no column for 'device'"),
        ({"train": "latin.jsonl"}, "line 2 of latin.jsonl is not UTF-8"),
        ({"train": "broken.jsonl"}, "broken.jsonl could not be read as json"),
        ({"train": "short.jsonl"}, "record 1 of train (short.jsonl) has 2 tokens but 1 tags"),
        ({"train": "empty.jsonl"}, "empty.jsonl"),
        ({"train": "nobody.jsonl"}, "the federation has no training example"),
        ({"train": "notes.txt"}, "unknown ending"),
        ({"train": "cut.jsonl.gz"}, "cut.jsonl.gz cannot be read"),
        ({"train": "train.jsonl,t.csv"}, "one split mixes file types"),
        ({"source": "hub", "path": ""}, "needs the name in data.path"),
        ({"train": "/train.jsonl"}, "by relative paths"),
        ({"train": "empty.jsonl"}, "empty.jsonl is empty"),
        ({"train": "divided.jsonl"}, "has rows of the split test"),
        (
            {"train": "words.jsonl"},
            "record 1 of train (words.jsonl) has tokens that are no list of words",
        ),
        ({"train": "odd.jsonl"}, "control characters cannot be in an id"),
        ({"train": "cut.npz", "task": "image"}, "cut.npz could not be read as npz"),
        ({"columns": "deleted=client"}, "a 'deleted' of train"),
    ],
)
def test_bad_input_gets_one_clear_sentence(
    folder: Path, settings: dict[str, str], sentence: str
) -> None:
    (folder / "latin.jsonl").write_bytes(b'{"client":"a"}\n{"client":"caf\xe9"}\n')
    (folder / "broken.jsonl").write_text('{"client": \n')
    jsonl(folder / "short.jsonl", [RECORDS[0] | {"tags": ["O"]}])
    jsonl(folder / "nobody.jsonl", [RECORDS[0] | {"client": ""}])
    jsonl(
        folder / "divided.jsonl", [RECORDS[0] | {"split": "train"}, RECORDS[1] | {"split": "test"}]
    )
    jsonl(folder / "words.jsonl", [RECORDS[0] | {"tokens": 7}])
    jsonl(folder / "odd.jsonl", [RECORDS[0] | {"client": "a\nb"}])
    (folder / "cut.npz").write_bytes(b"PK")
    (folder / "empty.jsonl").touch()
    (folder / "notes.txt").touch()
    (folder / "t.csv").write_text("client,intent\na,b\n")
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"client":"a"}\n')[:-9])
    with pytest.raises(WrongInput) as caught:
        Holdings(load_federation(files(**settings), folder), Stream(), 0.0, seed=1)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tags_may_be_numbers(folder: Path) -> None:
    jsonl(folder / "numbers.jsonl", [RECORDS[0] | {"tags": [0, 3]}])
    assert load_federation(files(train="numbers.jsonl"), folder).spec.tags == ("0", "3")


def test_a_word_that_looks_like_nothing_is_a_word_in_csv(folder: Path) -> None:
    (folder / "n.csv").write_text("client,intent,text\nNA,None,null\n")
    federation = load_federation(files(train="n.csv", test="", task="classification"), folder)
    assert federation.devices.tolist() == ["NA"]
    assert federation.spec.labels == ("None",)


def test_a_file_that_two_globs_name_is_read_once(folder: Path) -> None:
    federation = load_federation(files(train="train.jsonl,tr*.jsonl"), folder)
    assert federation.activity.sum() == 3


def test_changed_records_are_seen_even_where_the_time_of_the_file_is_not(folder: Path) -> None:
    before = (folder / "train.jsonl").stat()
    assert load_federation(files(), folder).spec.labels == ("play", "stop")
    text = (folder / "train.jsonl").read_text().replace("stop", "halt")
    (folder / "train.jsonl").write_text(text)
    os.utime(folder / "train.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_federation(files(seed=1), folder).spec.labels == ("halt", "play")


def test_arrays_that_cannot_be_joined_are_told(tmp_path: Path) -> None:
    for name, width in (("a", 3), ("b", 4)):
        np.savez(
            tmp_path / f"{name}.npz", image=np.zeros((2, 5, width)), intent=[0, 1], client=[0, 1]
        )
    with pytest.raises(WrongInput, match=r"a\.npz, b\.npz cannot be joined"):
        load_federation(Data(source="files", task="image", train="a.npz,b.npz"), tmp_path)


def test_only_training_records_need_devices_and_deletion_requests(folder: Path) -> None:
    jsonl(folder / "gone.jsonl", [r | {"gone": None} for r in RECORDS])
    data = files(train="gone.jsonl", columns="deleted=gone,device=client")
    assert load_federation(data, folder).activity.sum() == 3


def test_a_no_break_space_in_an_id_is_no_control_character(folder: Path) -> None:
    jsonl(folder / "nbsp.jsonl", [RECORDS[0] | {"client": "a\u00a0b"}])
    assert load_federation(files(train="nbsp.jsonl"), folder).activity.sum() == 1


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    for name, width in (("a", 3), ("b", 4)):
        np.savez(
            tmp_path / f"{name}.npz", image=np.zeros((2, 5, width)), intent=[0, 1], client=[0, 1]
        )
    data = Data(source="files", task="image", train="a.npz", test="b.npz")
    with pytest.raises(WrongInput, match="they must be alike"):
        load_federation(data, tmp_path)


def test_no_data_directory_is_told_with_all_three_ways_to_name_it() -> None:
    with pytest.raises(WrongInput) as caught:
        load_federation(files(), None)
    assert all(way in str(caught.value) for way in ("--data-dir", "place.data_dir", "FEDSIM_DATA"))
