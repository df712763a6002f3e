"""Partitions: disjoint, covering, of the right sizes, seeded, skewed as asked, refused in a
sentence.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import IidPartitioner, Partitioner
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config import Config, Data, Partition
from fedsim.data.activity import gini
from fedsim.data.federation import load_federation
from fedsim.data.partitions import (
    ClusterPartitioner,
    HeavyTailPartitioner,
    LabelHeavyTailPartitioner,
    LabelPartitioner,
    QuantityPartitioner,
    Tail,
)
from fedsim.data.partitions.assign import RULES, OwnerAssignment, assign_devices, device_names
from fedsim.data.partitions.clusters import embed, find_clusters
from fedsim.data.partitions.flower_partitions import rows_of
from fedsim.data.partitions.labels import _draw, _hand_out, draw_by_label
from fedsim.data.partitions.owners import dirichlet
from fedsim.data.partitions.tails import gini_range
from fedsim.data.partitions.wanted import Wanted
from fedsim.data.records import Records
from fedsim.errors import WrongInput
from fedsim.seeds import generator

WORDS = ("play", "stop", "call", "light", "rain")
# Settings under which each rule can divide 240 examples with 4 labels among 12 devices.
POSSIBLE: dict[str, dict[str, Any]] = {
    "dirichlet": {"min_size": 0},
    "exponential": {"devices": 5},
    "square": {"devices": 8},
    "heavy_tail": {"tail": "power", "gini": 0.5},
    "cluster": {"clusters": 4},
}
PARTIAL = {"shards", "pathological"}
"""Rules that may leave examples out."""


def made_up(examples: int = 240, labels: int = 4) -> Records:
    label = generator(7, "labels").integers(labels, size=examples)
    tokens = [[WORDS[k], WORDS[k], f"w{i % 9}", *["now"] * (i % 5)] for i, k in enumerate(label)]
    columns = {
        "label": [f"l{k}" for k in label],
        "tokens": tokens,
        "device": [f"u{i % 60}" for i in range(examples)],
    }
    return Records(columns, examples, "train (t.jsonl)", tuple(columns))


def assign(name: str, records: Records | None = None, **choices: Any) -> OwnerAssignment:
    chosen = {"devices": 12, "seed": 0} | POSSIBLE.get(name, {}) | choices
    data = Data(devices=chosen.pop("devices"), seed=chosen.pop("seed"))
    return assign_devices(
        data, Partition.model_validate({"name": name} | chosen), records or made_up()
    )


def histograms(owners: Sequence[Any], kinds: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Counts [devices, kinds]."""
    rows = np.unique(owners, return_inverse=True)[1]
    columns = np.unique(kinds, return_inverse=True)[1]
    out = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(out, (rows, columns), 1)
    return out


def skew(owners: Sequence[Any], kinds: Sequence[Any]) -> float:
    """Total variation distance of devices' shares of kinds from the pool's, weighted by size."""
    counts = histograms(owners, kinds)
    shares = counts / counts.sum(1, keepdims=True)
    pool = counts.sum(0) / counts.sum()
    return float(counts.sum(1) @ np.abs(shares - pool).sum(1) / (2 * counts.sum()))


@pytest.mark.parametrize("name", RULES)
def test_each_rule_gives_each_example_to_one_known_device(name: str) -> None:
    given = assign(name)
    assert given.owners.shape == (240,)
    assert set(given.owners[given.held]) <= set(given.devices)
    assert given.devices.tolist() == sorted(set(given.devices))
    if name not in PARTIAL:
        assert given.held.all()
        assert given.notes == ()


@pytest.mark.parametrize("name", RULES)
def test_a_seed_repeats_a_partition_and_another_seed_changes_it(name: str) -> None:
    first, again, other = (assign(name, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.owners, again.owners)
    assert first.fingerprint == again.fingerprint
    assert not np.array_equal(first.owners, other.owners)
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "name", ["iid", "inner_dirichlet", "size", "continuous", "fednlp_label", "cluster"]
)
def test_equal_rules_give_sizes_that_differ_by_one_at_most(name: str) -> None:
    records = made_up(250)
    sizes = np.unique(assign(name, records).owners, return_counts=True)[1]
    assert sorted(sizes) == [20] * 2 + [21] * 10


def test_named_sizes_are_kept_and_what_is_over_is_left_out_with_a_note() -> None:
    for name in ("size", "inner_dirichlet"):
        given = assign(name, devices=3, sizes="100, 60,40")
        assert np.unique(given.owners[given.held], return_counts=True)[1].tolist() == [100, 60, 40]
        assert given.notes == (
            "40 records of train (t.jsonl) came to no device by the partition: left out",
        )


def test_sizes_grow_with_the_device_number_as_worked_by_hand() -> None:
    ten = made_up(10)
    linear = np.unique(assign("linear", ten, devices=4).owners, return_counts=True)[1]
    assert linear.tolist() == [1, 2, 3, 4]
    square = np.unique(assign("square", made_up(30), devices=4).owners, return_counts=True)[1]
    assert square.tolist() == [1, 4, 9, 16]


def test_pathological_devices_have_exactly_their_number_of_labels() -> None:
    records = made_up()
    given = assign("pathological", classes=2)
    counts = histograms(given.owners, records.columns["label"])
    assert ((counts > 0).sum(1) == 2).all()


def test_shards_hold_few_labels_because_they_are_cut_from_sorted_examples() -> None:
    counts = histograms(assign("shards", shards=1).owners, made_up().columns["label"])
    assert (counts > 0).sum(1).max() <= 2


def test_groups_of_natural_ids_stay_together() -> None:
    given = assign("grouped_natural", group=10)
    assert len(given.devices) == 6
    by_user: dict[str, set[str]] = {}
    for user, device in zip(made_up().columns["device"], given.owners, strict=True):
        by_user.setdefault(user, set()).add(str(device))
    assert {len(devices) for devices in by_user.values()} == {1}


def test_a_strict_continuous_rule_sorts_examples_by_length() -> None:
    records = Records(
        {"tokens": [["a"] * n for n in (5, 1, 4, 2, 3, 6)], "label": list("xyxyxy")}, 6, "t"
    )
    assert assign("continuous", records, devices=3, strictness=1.0).owners.tolist() == [
        "p00002", "p00000", "p00001", "p00000", "p00001", "p00002"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "size", "linear", "continuous"])
def test_the_rows_read_off_are_those_that_flower_would_load(name: str) -> None:
    records = made_up()
    data = Data(devices=12)
    partition = Partition.model_validate({"name": name} | POSSIBLE.get(name, {}))
    rule = RULES[name]
    values = rule.values(partition, records) if rule.values else np.zeros(240)
    partitioner = rule.make(Wanted(data, partition, 240, values))
    partitioner.dataset = datasets.Dataset.from_dict({"index": np.arange(240), "value": values})
    rows = rows_of(partitioner)
    index = np.array(partitioner.dataset[:]["index"])
    for i in range(12):
        assert index[rows[i]].tolist() == partitioner.load_partition(i)[:]["index"]


@pytest.mark.parametrize(
    "name", ["dirichlet", "inner_dirichlet", "fednlp_label", "label_heavy_tail"]
)
def test_label_rules_become_more_skewed_as_alpha_falls(name: str) -> None:
    records = made_up(1200)
    found = [
        skew(
            assign(name, records, devices=40, alpha=alpha, tail="lognormal").owners,
            records.columns["label"],
        )
        for alpha in (100.0, 3.0, 0.05)
    ]
    assert found[0] < found[1] < found[2]
    assert found[0] < 0.2
    assert found[2] > 0.45


def test_the_cluster_rule_becomes_more_skewed_as_alpha_falls() -> None:
    records = made_up(600)
    found = [
        skew(assign("cluster", records, alpha=alpha).owners, records.columns["label"])
        for alpha in (100.0, 1.0, 0.05)
    ]
    assert found[0] < found[1] < found[2]


def test_clusters_of_texts_without_a_common_word_are_their_topics() -> None:
    texts = [
        "play jazz",
        "rain today",
        "play rock play",
        "rain rain",
        "play jazz jazz",
        "rain today today",
    ]
    found = find_clusters(embed(texts, 2, 0), 2, 0)
    assert found[[0, 2, 4]].tolist() in ([0] * 3, [1] * 3)
    assert found[[1, 3, 5]].tolist() == [1 - found[0]] * 3


def test_images_are_clustered_by_their_pixels() -> None:
    light = np.full((30, 4, 4), 250, np.uint8)
    dark = np.zeros((30, 4, 4), np.uint8)
    records = Records({"image": np.concatenate([light, dark]), "label": ["x"] * 60}, 60, "t")
    given = assign("cluster", records, clusters=2, alpha=0.001, devices=6)
    assert skew(given.owners, [0] * 30 + [1] * 30) > 0.4


def test_a_tail_follows_zipf_as_worked_by_hand() -> None:
    # shares 1, 1/2, 1/3 of 11 examples: 6, 3, 2
    sizes = Tail("zipf", shape=1.0).sizes(3, 11, 0, generator(0))
    assert sorted(sizes) == [2, 3, 6]
    # one each beforehand leaves 8: 4.36, 2.18, 1.45 -> 4, 2, 2 (largest remainder)
    assert sorted(Tail("zipf", shape=1.0).sizes(3, 11, 1, generator(0))) == [3, 3, 5]


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_a_power_law_meets_its_gini(target: float) -> None:
    sizes = Tail("power", gini=target).sizes(500, 20_000, 1, generator(0))
    assert sizes.sum() == 20_000
    assert gini(sizes) == pytest.approx(target, abs=1e-3)


def test_the_extremes_of_gini_are_those_worked_by_hand() -> None:
    # 3 devices, 10 examples: 4, 3, 3 has Gini 4/60; 8, 1, 1 has 28/60
    assert gini_range(3, 10, 1) == pytest.approx((4 / 60, 28 / 60))
    assert gini(np.array([3, 4, 3])) == pytest.approx(4 / 60)
    assert gini(np.array([1, 8, 1])) == pytest.approx(28 / 60)
    assert sorted(Tail("power", gini=28 / 60).sizes(3, 10, 1, generator(0))) == [1, 1, 8]
    assert sorted(Tail("power", gini=4 / 60).sizes(3, 10, 1, generator(0))) == [3, 3, 4]


def test_copied_counts_come_back_when_devices_and_examples_are_the_same() -> None:
    counts = (9, 1, 30, 2, 8)
    assert sorted(Tail("copy", counts=counts).sizes(5, 50, 0, generator(0))) == sorted(counts)
    twice = Tail("copy", counts=counts).sizes(10, 200, 0, generator(0))
    assert sorted(twice) == sorted(2 * c for c in counts + counts)


def test_counts_are_read_from_text_from_json_and_from_a_column_of_records(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("100\n100\n40\n")
    (tmp_path / "c.json").write_text('{"a": 100, "b": 100, "c": 40}')
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as stream:
        stream.writelines(
            json.dumps({"who": who}) + "\n" for who in "a" * 100 + "b" * 100 + "c" * 40
        )
    for copy_from in ("c.txt", "c.json", "r.jsonl.gz#who"):
        partition = Partition(name="heavy_tail", tail="copy", copy_from=copy_from, min_size=0)
        found = assign_devices(Data(devices=3), partition, made_up(), tmp_path)
        assert sorted(np.unique(found.owners, return_counts=True)[1]) == [40, 100, 100]
    with pytest.raises(WrongInput, match="cannot be read"):
        assign_devices(
            Data(devices=3),
            partition.model_copy(update={"copy_from": "r.jsonl.gz#x"}),
            made_up(),
            tmp_path,
        )


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    devices=st.integers(1, 12),
    alpha=st.sampled_from([1e-9, 0.01, 1.0, 1e9]),
    seed=st.integers(0, 2**32),
)
def test_the_label_rule_covers_with_exact_sizes_whatever_the_labels(
    labels: list[int], devices: int, alpha: float, seed: int
) -> None:
    codes = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    sizes = generator(seed).multinomial(len(labels), np.full(devices, 1 / devices))
    owners = draw_by_label(codes, sizes, alpha, generator(seed, "draw"))
    assert np.bincount(owners, minlength=devices).tolist() == sizes.tolist()


@given(
    devices=st.integers(1, 40),
    over=st.integers(0, 400),
    min_size=st.integers(0, 3),
    law=st.sampled_from(["zipf", "lognormal", "copy"]),
    shape=st.floats(0.01, 50.0),
    seed=st.integers(0, 2**32),
)
def test_tails_sum_to_the_examples_and_respect_the_least_size(
    devices: int, over: int, min_size: int, law: Any, shape: float, seed: int
) -> None:
    examples = devices * max(1, min_size) + over
    sizes = Tail(law, shape, counts=(1, 5, 90)).sizes(devices, examples, min_size, generator(seed))
    assert sizes.shape == (devices,)
    assert sizes.sum() == examples
    assert sizes.min() >= min_size


@given(
    concentration=st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=9), seed=st.integers(0, 2**32)
)
def test_dirichlet_shares_sum_to_one_however_small_the_concentration(
    concentration: list[float], seed: int
) -> None:
    shares = dirichlet(np.array(concentration), generator(seed))
    assert shares.min() >= 0
    assert shares.sum() == pytest.approx(1.0)


def test_dirichlet_shares_have_the_law_that_numpy_draws() -> None:
    # Mean and variance of 4,000 draws of Dir(0.3, 0.6, 2) within 4.5 standard errors: false alarm <
    # 1e-4.
    concentration = np.array([0.3, 0.6, 2.0])
    rng = generator(5, "law")
    ours = np.array([dirichlet(concentration, rng) for _ in range(4000)])
    mean = concentration / concentration.sum()
    variance = mean * (1 - mean) / (concentration.sum() + 1)
    assert (np.abs(ours.mean(0) - mean) < 4.5 * np.sqrt(variance / 4000)).all()
    spread = (ours - mean) ** 2
    assert (np.abs(spread.mean(0) - variance) < 4.5 * spread.std(0) / np.sqrt(4000)).all()


def test_a_device_whose_label_is_exhausted_is_refilled_from_what_is_left() -> None:
    # it likes label 0 alone, of which one row is left, and needs three: the others are label 1
    taken = _draw(np.array([1.0, 0.0]), np.array([1, 3]), 3, generator(0))
    assert taken.tolist() == [1, 2]


def test_counts_by_device_and_label_are_handed_out_exactly() -> None:
    labels = np.array([1, 0, 1, 0, 0])
    # device 2 takes one 0 and two 1, device 0 takes two 0
    owners = _hand_out(
        labels, np.array([2, 2, 0]), np.array([0, 1, 0]), np.array([1, 2, 2]), generator(0)
    )
    assert histograms(owners, labels).tolist() == [[2, 0], [1, 2]]


def test_a_concentrated_label_rule_gives_devices_the_pool() -> None:
    # alpha = 1e9 leaves the multinomial draw alone; devices of 100 rows from shares 1/4 and 3/4:
    # a standard deviation of 4.3 rows, so they stay within 20 but for a chance below 1e-3; only the
    # last that draw take what the others left, as in FedNLP
    labels = np.repeat([0, 1, 1, 1], 1500)
    owners = draw_by_label(labels, np.full(60, 100), 1e9, generator(2))
    assert np.sort(np.abs(histograms(owners, labels)[:, 0] - 25))[:-2].max() <= 20


def test_late_ids_are_not_those_refilled_from_what_is_left() -> None:
    labels = np.repeat(np.arange(10), 200)
    owners = draw_by_label(labels, np.full(200, 10), 0.1, generator(1))
    kinds = (histograms(owners, labels) > 0).sum(1)
    assert abs(kinds[:100].mean() - kinds[100:].mean()) < 0.5


def plain(partitioner: Partitioner, examples: int = 60) -> Partitioner:
    records = made_up(examples)
    texts = [" ".join(tokens) for tokens in records.columns["tokens"]]
    partitioner.dataset = datasets.Dataset.from_dict(
        {"id": range(examples), "label": records.columns["label"], "text": texts}
    )
    return partitioner


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelPartitioner(5, "label", 0.5, seed=1),
        lambda: QuantityPartitioner(5, 0.5, seed=1),
        lambda: ClusterPartitioner(5, "text", 0.5, seed=1, num_clusters=3),
        lambda: HeavyTailPartitioner(5, Tail("zipf"), seed=1),
        lambda: LabelHeavyTailPartitioner(5, "label", 0.5, Tail("power", gini=0.4), seed=1),
    ],
)
def test_a_flower_app_uses_ours_as_it_uses_flowers_own(make: Callable[[], Partitioner]) -> None:
    partitioner = plain(make())
    assert isinstance(partitioner, Partitioner)
    assert partitioner.num_partitions == 5
    parts = [partitioner.load_partition(i)["id"][:] for i in range(5)]
    assert sorted(x for part in parts for x in part) == list(range(60))
    assert min(map(len, parts)) >= 1
    assert partitioner.load_partition(2).column_names == ["id", "label", "text"]


def test_given_vectors_are_clustered_as_they_are() -> None:
    partitioner = ClusterPartitioner(4, "vector", 0.001, seed=1, num_clusters=2)
    vectors = [[0.0, 1.0]] * 20 + [[5.0, 0.0]] * 20
    partitioner.dataset = datasets.Dataset.from_dict({"vector": vectors})
    assert skew(partitioner.owners, [0] * 20 + [1] * 20) > 0.4


def test_flowers_iid_of_a_sorted_file_is_still_mixed() -> None:
    records = Records({"label": ["a"] * 60 + ["b"] * 60}, 120, "t")
    assert skew(assign("iid", records, devices=4).owners, records.columns["label"]) < 0.25
    bare = IidPartitioner(4)
    bare.dataset = datasets.Dataset.from_dict({"label": records.columns["label"]})
    assert set(bare.load_partition(0)["label"]) == {"a"}


def test_tag_sets_are_labels_for_tagging() -> None:
    tags = [["O", "B-artist"], ["B-room", "I-room"], ["I-artist", "O"], ["O", "O"]] * 30
    records = Records({"tokens": [["a", "b"]] * 120, "tags": tags}, 120, "t")
    given = assign("fednlp_label", records, by="tags", alpha=0.001, devices=6)
    kinds = ["artist", "room", "artist", ""] * 30
    assert skew(given.owners, kinds) > 0.4


def by_parity(data: Data, partition: Partition, records: Records) -> list[str | None]:
    return [
        f"{'even' if i % 2 == 0 else 'odd'}{data.devices}" if i else None
        for i in range(records.size)
    ]


def too_few(data: Data, partition: Partition, records: Records) -> list[str]:
    return ["a"]


def test_own_code_names_devices_and_may_leave_records_out() -> None:
    given = assign("test_partitions:by_parity", made_up(5))
    assert given.owners.tolist() == ["", "odd12", "even12", "odd12", "even12"]
    assert given.devices.tolist() == ["even12", "odd12"]
    with pytest.raises(WrongInput, match="returned 1 device ids for 5 records"):
        assign("test_partitions:too_few", made_up(5))


def test_device_names_sort_as_their_numbers() -> None:
    assert device_names(13).tolist()[-1] == "p00012"
    names = device_names(100_001)
    assert names[-1] == "p100000"
    assert names.tolist() == sorted(names)


@pytest.mark.parametrize(
    ("name", "choices", "sentence"),
    [
        (
            "iid",
            {"devices": 500},
            "500 devices cannot share 240 examples; lower data.devices to at most 240",
        ),
        (
            "quantity",
            {"min_size": 21},
            r"min_size = 21 for 12 devices needs 252 examples.*at most 20",
        ),
        ("heavy_tail", {"gini": 0.99}, "a Gini of 0.99 cannot be reached.*only 0.000 to 0.871"),
        (
            "exponential",
            {"devices": 12},
            "leaves the smallest of 12 devices without an example.*= 6 is the",
        ),
        ("distribution", {"devices": 10}, "multiple of the 4 labels, got 10; try 8"),
        ("dirichlet", {"min_size": 19, "alpha": 0.01}, "lower partition.min_size"),
        (
            "pathological",
            {"classes": 9},
            "greater than the number of unique classes.*lower data.devices or",
        ),
        (
            "size",
            {"sizes": "3,4"},
            "wants data.devices = 12 sizes.*got 2 sizes from 3 that sum to 7",
        ),
        ("cluster", {"clusters": 999}, "partition.clusters = 999 cannot be made of 240 examples"),
        ("fednlp_label", {"by": "time"}, "needs a 'time' for each record"),
        ("heavy_tail", {"tail": "copy"}, "needs a data directory and partition.copy_from"),
        ("dirichlett", {}, "did you mean 'dirichlet'"),
        ("continuous", {"by": "label"}, "wants numbers, but record 1 of"),
        ("inner_dirichlet", {"alpha": 1e-9}, "raise partition.alpha"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    name: str, choices: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(WrongInput, match=sentence) as caught:
        assign(name, **choices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "fednlp_label", "label_heavy_tail"])
def test_a_label_rule_without_labels_says_what_to_use_instead(name: str) -> None:
    records = Records({"tokens": [["a"]] * 40}, 40, "train (t.jsonl)")
    with pytest.raises(
        WrongInput, match=r'train \(t.jsonl\) has only tokens.*partition.name = "cluster"'
    ):
        assign(name, records)


def snippets(folder: Path, count: int = 40) -> Data:
    rows = [{"intent": f"i{i % 4}", "text": f"w{i % 4} w{i}"} for i in range(count)]
    for split, part in (("train", rows), ("test", rows[:8])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return Data(
        source="files", task="classification", train="train.jsonl", test="test.jsonl", devices=5
    )


def test_a_table_without_device_column_gets_the_devices_of_its_partition(tmp_path: Path) -> None:
    data = snippets(tmp_path)
    federation = load_federation(data, tmp_path, Partition(name="fednlp_label"))
    assert federation.devices.tolist() == [f"p0000{i}" for i in range(5)]
    assert federation.activity.tolist() == [8] * 5
    assert federation.test is not None
    assert len(federation.test) == 8
    seen = np.concatenate([federation.train(d).fields["label"].numpy() for d in federation.devices])
    assert np.bincount(seen).tolist() == [10] * 4
    assert set(federation.fingerprint) == {"train.jsonl", "test.jsonl", "partition"}


def test_devices_that_a_rule_leaves_empty_stay_in_the_federation(tmp_path: Path) -> None:
    data = snippets(tmp_path).model_copy(update={"devices": 20})
    federation = load_federation(
        data, tmp_path, Partition(name="dirichlet", alpha=0.05, min_size=0)
    )
    assert len(federation.devices) == 20
    assert federation.activity.min() == 0
    assert federation.activity.sum() == 40


def test_words_that_no_device_holds_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    data = snippets(tmp_path).model_copy(update={"devices": 2})
    federation = load_federation(data, tmp_path, Partition(name="size", sizes="3,4"))
    assert federation.activity.tolist() == [3, 4]
    assert sum(word not in ("w0", "w1", "w2", "w3") for word in federation.spec.words) <= 7
    assert any("33 records" in note for note in federation.notes)


def test_without_a_device_column_and_without_a_partition_the_error_names_both_ways_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        WrongInput, match=r'has no column for .device.*partition.name = "fednlp_label"'
    ):
        load_federation(snippets(tmp_path), tmp_path)


def test_a_source_with_devices_of_its_own_is_not_divided() -> None:
    with pytest.raises(WrongInput, match="makes devices of its own"):
        load_federation(Data(), None, Partition(name="iid"))


def test_default_partition_keeps_old_hashes() -> None:
    assert Config().hash == "c9dca300"


def test_ten_thousand_devices_are_assigned_in_seconds() -> None:
    records = made_up(100_000)
    given = assign("label_heavy_tail", records, devices=10_000, tail="lognormal")
    assert len(np.unique(given.owners)) == 10_000
