"""Words, n-grams and names of labels to ids."""

import pytest

from fedsim.config import Data
from fedsim.data.encode import character_ngrams, encode_tokens, label_tokens, make_vocabulary
from fedsim.data.synthetic_requests import Requests
from fedsim.errors import WrongInput

HASHED = Data(vocabulary="hashed", task="classification", ngrams="3, 4")


def test_character_ngrams_are_those_of_the_word_between_its_edges() -> None:
    assert character_ngrams("alarm", (3, 4)) == [
        *("#<al", "#ala", "#lar", "#arm", "#rm>"),
        *("#<ala", "#alar", "#larm", "#arm>"),
    ]
    assert character_ngrams("a", (3, 4)) == ["#<a>"]


def test_ngrams_stand_behind_the_words_and_are_cut_with_them() -> None:
    vocabulary = make_vocabulary(HASHED, [])
    plain = make_vocabulary(Data(vocabulary="hashed"), [])
    texts = [["set", "alarm"], ["a"]]
    ids = encode_tokens(vocabulary, texts, 64)
    assert ids.shape == (2, 2 + 5 + 9)
    assert ids[0, :2].tolist() == encode_tokens(plain, texts, 64)[0].tolist()
    assert (ids[1] != 0).sum() == 2
    assert encode_tokens(vocabulary, texts, 4).tolist() == ids[:, :4].tolist()


def test_names_of_labels_are_hashed_like_texts() -> None:
    vocabulary = make_vocabulary(HASHED, [])
    assert label_tokens(vocabulary, ["Alarm_set"]) == (tuple(vocabulary.ids(["alarm", "set"])),)
    assert label_tokens(make_vocabulary(Data(), [["alarm"]]), ["alarm"]) == ()
    spec = Requests(HASHED).spec
    assert len(spec.label_tokens) == len(spec.labels)


@pytest.mark.parametrize("wrong", [{"vocabulary": "training"}, {"task": "intent_slots"}])
def test_ngrams_are_refused_where_words_or_tags_need_their_places(wrong: dict[str, str]) -> None:
    with pytest.raises(WrongInput, match="puts hashed pieces behind the words"):
        make_vocabulary(Data.model_validate(HASHED.model_dump() | wrong), [["a"]])
