"""The embedded generator of requests."""

import hashlib

import torch

from fedsim.config import Data
from fedsim.data.synthetic_requests import FINGERPRINT, MISHEARD, SLOTS, Requests
from fedsim.types import PAD


def test_a_device_s_requests_depend_on_seed_and_device_alone() -> None:
    one = Requests(Data(devices=50, examples=900))
    again = Requests(Data(devices=50, examples=900))
    again.train("d07")
    a = one.train("d03").fields
    b = again.train("d03").fields
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = Requests(Data(devices=50, examples=900, seed=1)).train("d03").fields
    assert not torch.equal(a["tokens"][:3], other["tokens"][:3])


def test_a_device_holds_as_many_examples_as_its_activity_says() -> None:
    data = Requests(Data(devices=30, examples=400))
    assert [len(data.train(str(d))) for d in data.devices] == data.activity.tolist()


def test_the_same_seed_makes_the_same_requests_for_ever() -> None:
    """Sabotage: intents drawn with 0.31 for 0.3.

    Who changes this on purpose also changes FINGERPRINT.
    """
    data = Requests(Data(devices=20, examples=400, seed=7))
    made = hashlib.sha256()
    for examples in (data.dev, data.test, *(data.train(str(device)) for device in data.devices)):
        assert examples is not None
        for field in ("tokens", "label", "tags"):
            made.update(examples.fields[field].numpy().tobytes())
    assert made.hexdigest()[:16] == "d727b575b7b9f7db"
    assert data.fingerprint == {"requests": FINGERPRINT}


def test_tags_stand_at_tokens_and_only_there() -> None:
    fields = Requests(Data()).test.fields
    assert torch.equal(fields["tags"] >= 0, fields["tokens"] != PAD)
    assert int(fields["tokens"].max()) < Requests(Data()).spec.vocabulary


def test_words_are_misheard_about_as_often_as_stated() -> None:
    data = Requests(Data(devices=1, examples=20000, activity="equal"))
    firsts = {value.split()[0] for value in SLOTS["item"].split("|")}
    words = ("",) * 2 + data.spec.words
    fields = data.train("d0").fields
    heard = fields["tokens"][fields["tags"] == data.spec.tags.index("B-item")].tolist()
    wrong = sum(words[i] not in firsts for i in heard) / len(heard)
    expected = MISHEARD * (1 - len(firsts) / len(data.spec.words))
    assert len(heard) > 500
    # 4 standard errors: a false alarm in 6 of 100,000 seeds
    assert abs(wrong - expected) < 4 * (expected * (1 - expected) / len(heard)) ** 0.5


def test_devices_have_habits() -> None:
    data = Requests(Data(devices=2, examples=2000, activity="equal"))
    a, b = (torch.bincount(data.train(d).fields["label"], minlength=20) for d in ("d0", "d1"))
    assert int((a - b).abs().sum()) > 400


def test_hashed_words_reveal_no_vocabulary() -> None:
    data = Requests(Data(vocabulary="hashed", buckets=64))
    assert data.spec.vocabulary == 66
    assert data.spec.words == ()
