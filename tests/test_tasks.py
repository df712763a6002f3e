"""Losses and metrics on numbers worked by hand; words, held-out tests and the models that fit a
task.
"""

import math

import pytest
import torch

from clients.training import Assignment, Trainer
from fedsim.app.server.early_stopping import stopped_early
from fedsim.config import Config, Data, Model, Partition, Train
from fedsim.data.encode import make_vocabulary, next_tokens
from fedsim.data.federation import load_federation
from fedsim.data.records import Records, Splits
from fedsim.data.table import RecordTable
from fedsim.errors import WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.models.evaluation import evaluate
from fedsim.models.tasks import make_task
from fedsim.types import PAD, UNKNOWN, Examples, Spec, concatenate, trim

LN2 = math.log(2)
LANGUAGE = make_task(Spec("language", vocabulary=4))
WORDS = {
    "next": torch.tensor([[2, 3, PAD], [UNKNOWN, 3, PAD]]),
}
ODDS = torch.tensor(
    [  # ids:  PAD, unknown, 2, 3; the last row of each stands at the end, where nothing is asked
        [[1 / 6, 1 / 6, 1 / 2, 1 / 6], [1 / 8, 1 / 2, 1 / 4, 1 / 8], [0.97, 0.01, 0.01, 0.01]],
        [[0.01, 0.97, 0.01, 0.01], [1 / 2, 1 / 4, 3 / 16, 1 / 16], [0.97, 0.01, 0.01, 0.01]],
    ]
)


def test_the_loss_of_a_message_is_the_mean_over_its_known_next_words():
    losses = LANGUAGE.losses({"next": ODDS.log()}, WORDS)
    torch.testing.assert_close(losses, torch.tensor([(1 + 3) / 2 * LN2, 4 * LN2]))


def test_perplexity_is_over_known_words_and_accuracy_over_all():
    metrics = LANGUAGE.metrics(LANGUAGE.scores({"next": ODDS.log()}, WORDS))
    assert metrics["perplexity"] == pytest.approx(2 ** ((1 + 3 + 4) / 3))
    assert (
        metrics["word_accuracy"] == 1 / 4
    )  # first word right; "unknown" said for unknown is wrong
    assert metrics["loss"] == pytest.approx((2 + 4) / 2 * LN2)


def test_a_message_of_unknown_words_only_has_no_loss_and_no_gradient():
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    batch = {"next": torch.tensor([[UNKNOWN, PAD]])}
    loss = LANGUAGE.losses({"next": logits}, batch)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == 0.0
    assert not grad.any()
    assert LANGUAGE.metrics(LANGUAGE.scores({"next": logits.detach()}, batch)) == {
        "word_accuracy": 0.0
    }


def test_the_perplexity_of_a_diverged_model_stays_a_number():
    logits = torch.full((1, 1, 4), 0.0)
    logits[..., 2] = -1e6
    metrics = LANGUAGE.metrics(LANGUAGE.scores({"next": logits}, {"next": torch.tensor([[2]])}))
    assert math.isfinite(metrics["perplexity"])


def test_sums_of_batches_add_up():
    both = LANGUAGE.scores({"next": ODDS.log()}, WORDS)
    parts = [
        LANGUAGE.scores({"next": ODDS[i : i + 1].log()}, {"next": WORDS["next"][[i]]})
        for i in (0, 1)
    ]
    assert both == pytest.approx({name: parts[0][name] + parts[1][name] for name in both})


TAGS = ("O", "B-x", "I-x", "B-y")
TAGGING = make_task(Spec("tagging", tags=TAGS, tags_unseen=("B-z",)))


def tag_scores(true: list[list[int]], said: list[list[int]]) -> dict[str, float]:
    logits = torch.nn.functional.one_hot(torch.tensor(said), len(TAGS)).float()
    return TAGGING.metrics(TAGGING.scores({"tags": logits}, {"tags": torch.tensor(true)}))


def test_span_f1_counts_spans_with_right_type_and_bounds():
    metrics = tag_scores([[1, 2, 0, 3], [0, 0, -1, -1]], [[1, 2, 0, 1], [0, 3, 0, 0]])
    assert metrics["span_f1"] == 2 * 1 / (2 + 3)  # true 2, said 3, right 1
    assert metrics["token_accuracy"] == 4 / 6


def test_a_span_that_is_cut_short_is_wrong():
    assert tag_scores([[1, 2]], [[1, 0]])["span_f1"] == 0.0


def test_a_tag_that_training_never_saw_is_wrong_and_has_no_loss():
    metrics = tag_scores([[4, 0]], [[3, 0]])
    assert metrics["span_f1"] == 0.0
    assert metrics["token_accuracy"] == 0.5
    assert "loss" not in metrics


def test_the_loss_of_tags_is_their_mean_without_padding():
    logits = torch.tensor([[[1 / 2, 1 / 4, 1 / 8, 1 / 8]] * 3]).log()
    loss = TAGGING.losses({"tags": logits}, {"tags": torch.tensor([[0, 2, -1]])})
    torch.testing.assert_close(loss, torch.tensor([(1 + 3) / 2 * LN2]))


def test_a_limited_vocabulary_keeps_the_most_frequent_words_and_the_alphabet_decides_ties():
    texts = [["b", "a", "c"], ["b", "d"], ["d", "b"]]
    assert make_vocabulary(Data(vocabulary_size=3), texts).names == ("a", "b", "d")
    assert make_vocabulary(Data(), texts).names == ("a", "b", "c", "d")
    assert make_vocabulary(Data(vocabulary_size=3), texts).ids(["b", "c"])[1] == UNKNOWN


def test_next_tokens_are_views_of_the_same_memory():
    ids = torch.tensor([[5, 6, 7], [8, 9, PAD]])
    fields = next_tokens(ids)
    assert fields["tokens"].tolist() == [[5, 6], [8, 9]]
    assert fields["next"].tolist() == [[6, 7], [9, PAD]]
    assert (
        fields["tokens"].untyped_storage().data_ptr() == fields["next"].untyped_storage().data_ptr()
    )


def test_messages_cut_to_one_token_are_refused():
    with pytest.raises(WrongInput, match=r"raise data\.max_length"):
        table(Data(task="language", max_length=1), train={"text": ["one two"], "device": ["a"]})


def table(data: Data, **splits: dict[str, list]) -> RecordTable:
    records = {
        name: Records(columns, len(next(iter(columns.values()))), name, tuple(columns))
        for name, columns in splits.items()
    }
    return RecordTable(data, Partition(), Splits(records, {}), None)


def test_language_examples_need_two_tokens_and_no_label():
    train = {"text": ["One two three", "alone", "two"], "device": ["a", "a", "b"]}
    federation = table(Data(task="language"), train=train)
    assert federation.activity.tolist() == [1]
    assert federation.notes == ("2 records of train have no next word: left out",)
    assert federation.spec.labels == ()
    fields = federation.train("a").fields
    assert [federation.spec.words[i - 2] for i in fields["next"][0]] == ["two", "three"]


def test_a_held_out_share_is_drawn_from_each_device_and_repeats():
    data = Data(task="language", test_share=0.25)
    train = {"text": [f"word {i}" for i in range(13)], "device": ["a"] * 8 + ["b"] * 4 + ["c"]}
    first = table(data, train=train)
    again = table(data, train=train)
    assert first.activity.tolist() == [6, 3, 1]
    assert len(first.test) == 3
    assert first.spec.words == again.spec.words
    other = table(Data(task="language", test_share=0.25, seed=1), train=train)
    assert first.spec.words != other.spec.words  # each word stands in one record


def test_no_share_is_held_out_beside_a_test_split():
    columns = {"text": ["one two"], "device": ["a"]}
    with pytest.raises(WrongInput, match="second test split"):
        table(Data(task="language", test_share=0.5), train=columns, test=columns)


def test_trimming_cuts_what_no_example_needs():
    fields = {
        "tokens": torch.tensor([[3, 4, 0, 0], [5, 0, 0, 0]]),
        "tags": torch.tensor([[0, 0, -1, -1], [0, -1, -1, -1]]),
        "label": torch.tensor([0, 1]),
    }
    short = trim(fields)
    assert short["tokens"].tolist() == [[3, 4], [5, 0]]
    assert short["tags"].tolist() == [[0, 0], [0, -1]]
    assert short["label"].tolist() == [0, 1]
    wide = concatenate([Examples(short), Examples(fields)])
    assert wide.fields["tags"][0].tolist() == [0, 0, -1, -1]


@pytest.mark.parametrize(
    ("task", "name"), [("language", "bag"), ("tagging", "lstm"), ("image", "transformer")]
)
def test_a_model_without_outputs_for_the_task_is_refused(task: str, name: str):
    spec = Spec(task, vocabulary=9, labels=("a",), tags=("O",), image=(1, 8, 8), length=4)
    with pytest.raises(WrongInput, match=f"'{name}' serves"):
        build_model(spec, Model(name=name), seed=1)


def test_sizes_that_a_model_cannot_have_are_refused():
    text = Spec("language", vocabulary=9, length=4)
    image = Spec("image", labels=("a",), image=(1, 8, 8))
    with pytest.raises(WrongInput, match="choose a multiple"):
        build_model(text, Model(name="transformer", embedding=10, heads=4), seed=1)
    with pytest.raises(WrongInput, match="lower it"):
        build_model(image, Model(name="cnn", layers=4), seed=1)


def test_images_do_not_come_from_the_request_grammar():
    with pytest.raises(WrongInput, match="neither images"):
        load_federation(Data(task="image"), None)
    with pytest.raises(WrongInput, match="has images"):
        load_federation(Data(source="digits"), None)


@pytest.mark.parametrize(
    ("task", "name", "metric"),
    [
        ("language", "lstm", "word_accuracy"),
        ("language", "transformer", "word_accuracy"),
        ("tagging", "bilstm", "span_f1"),
        ("tagging", "bag", "span_f1"),
        ("classification", "transformer", "accuracy"),
    ],
)
def test_devices_of_a_task_train_the_same_stacked_and_one_by_one(task: str, name: str, metric: str):
    federation = load_federation(Data(task=task, devices=8, examples=60), None)
    module = build_model(
        federation.spec, Model(name=name, embedding=8, hidden=8, dropout=0.1), seed=1
    )
    assert make_task(federation.spec).metric == metric
    assigned = [Assignment(d, federation.train(d), 1.0) for d in federation.devices.tolist()]
    stacked, single = (
        Trainer(module, make_task(federation.spec), Train(lr=0.5, batch_size=4), memory).train(
            parameters_of(module), assigned, seed=1, round=1
        )
        for memory in (2**30, 0)
    )
    assert stacked.metrics["loss_sum"] == pytest.approx(single.metrics["loss_sum"], rel=1e-5)
    for one, other in zip(stacked.delta.values(), single.delta.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=2e-5)


def test_the_batches_of_an_evaluation_change_no_metric():
    federation = load_federation(Data(task="language", devices=2, examples=20), None)
    module = build_model(federation.spec, Model(name="lstm", embedding=8, hidden=8), seed=1)
    task = make_task(federation.spec)
    params = parameters_of(module)
    few = federation.test[:40]
    assert evaluate(module, task, params, few, batch=7) == pytest.approx(
        evaluate(module, task, params, few)
    )


def test_early_stopping_takes_a_falling_perplexity_for_progress():
    config = Config(train=Train(patience=1, patience_metric="perplexity"))
    rows = [{"dev_perplexity": value} for value in (30.0, 20.0)]
    assert not stopped_early(config, LANGUAGE, rows)
    assert stopped_early(config, LANGUAGE, [*rows, {"dev_perplexity": 25.0}])


def test_the_digits_are_divided_by_a_partition():
    data = Data(source="digits", task="image", devices=10, test_share=0.2)
    federation = load_federation(data, None, Partition(name="iid"))
    sizes = federation.activity
    assert sizes.max() - sizes.min() <= 2
    assert sizes.sum() + len(federation.test) == 1797
    assert federation.spec.image == (1, 8, 8)
    assert len(federation.spec.labels) == 10
    image = federation.train("p00003").fields["image"]
    assert float(image.min()) >= 0.0
    assert float(image.max()) <= 1.0
