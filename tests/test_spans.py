"""Span counts and task metrics, by hand."""

import numpy as np
import pytest
import torch

from fedsim.models.spans import count_spans
from fedsim.models.tasks import Classification, IntentSlots
from fedsim.types import Spec

NAMES = ("O", "B-x", "I-x", "B-y", "I-y")
IDS = {name: i for i, name in enumerate(NAMES)}


def counts(true: str, predicted: str) -> tuple[int, int, int]:
    rows = [np.array([[IDS.get(tag, -1) for tag in text.split()]]) for text in (true, predicted)]
    found = count_spans(rows[0], rows[1], NAMES)
    return found.true, found.predicted, found.right


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ("O O O", "O O O", (0, 0, 0)),
        ("B-x I-x O", "B-x I-x O", (1, 1, 1)),
        ("B-x I-x O", "B-x O O", (1, 1, 0)),  # too short
        ("B-x O O", "B-x I-x O", (1, 1, 0)),  # too long
        ("B-x I-x O", "B-y I-y O", (1, 1, 0)),  # wrong type
        ("B-x B-x O", "B-x I-x O", (2, 1, 0)),  # two spans, or one
        ("B-x B-x O", "B-x B-x O", (2, 2, 2)),
        ("O I-x I-x", "O B-x I-x", (1, 1, 1)),  # an I- that continues nothing begins a span
        ("B-x I-y I-y", "B-x B-y I-y", (2, 2, 2)),  # as does an I- of another type
        ("B-x I-x -", "B-x I-x -", (1, 1, 1)),  # padding ends a span
        ("O O B-y", "O O B-y", (1, 1, 1)),  # the last token
    ],
)
def test_spans_are_counted_as_conll_does(
    true: str, predicted: str, expected: tuple[int, int, int]
) -> None:
    assert counts(true, predicted) == expected


def test_rows_do_not_touch_each_other() -> None:
    tags = np.array([[0, 1], [2, 0]])
    assert count_spans(tags, tags, NAMES).true == 2


def logits(ids: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(ids), classes).double() * 5


def test_intent_slot_metrics_by_hand() -> None:
    spec = Spec(
        "intent_slots", 9, labels=("a", "b"), tags=NAMES, labels_unseen=("c",), tags_unseen=("B-z",)
    )
    task = IntentSlots(spec)
    batch = {"label": torch.tensor([0, 1, 2]), "tags": torch.tensor([[0, 1], [1, 2], [5, -1]])}
    outputs = {
        "label": logits([0, 0, 1], 2),  # right, wrong, unseen label: an error of the model
        "tags": torch.stack([logits([0, 1], 5), logits([1, 2], 5), logits([0, 0], 5)]),
    }
    metrics = task.metrics(task.scores(outputs, batch))
    assert metrics["intent_accuracy"] == pytest.approx(1 / 3)
    assert metrics["frame_accuracy"] == pytest.approx(1 / 3)
    assert metrics["slot_f1"] == pytest.approx(
        2 * 2 / (3 + 2)
    )  # the unseen tag is a span that is missed
    right = float(torch.log1p(torch.exp(torch.tensor(-5.0))))  # cross entropy of a right intent
    each_tag = float(torch.log1p(4 * torch.exp(torch.tensor(-5.0))))
    assert metrics["loss"] == pytest.approx((right + (right + 5) + 2 * each_tag) / 2, rel=1e-6)


def test_sums_of_batches_give_the_metrics_of_the_whole() -> None:
    task = Classification(Spec("classification", 9, labels=("a", "b", "c")), input="tokens")
    label = torch.arange(10) % 3
    out = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    whole = task.scores({"label": out}, {"label": label})
    parts = [
        task.scores({"label": out[s]}, {"label": label[s]}) for s in (slice(0, 4), slice(4, 10))
    ]
    assert whole == pytest.approx({name: sum(p[name] for p in parts) for name in whole}, rel=1e-6)
