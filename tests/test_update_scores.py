"""Attacks on updates as arrays: products without gradients, FedMIA, leaks of rows and biases."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import functional_call

from clients.clipping import Clip, clipped_gradients
from fedsim.audit.update_scores import (
    UPDATE_ATTACKS,
    Observed,
    directional,
    hits,
    leaked_labels,
    leaked_tokens,
    moved_along,
    observe,
    record_losses,
    standing,
)
from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models import MODELS, build_model, parameters_of
from fedsim.models.tasks import make_task
from fedsim.seeds import generator
from fedsim.types import PAD, Examples, Params, Spec


def examples_of(task: str, records: int = 7) -> tuple[Spec, Examples]:
    made = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (records,), generator=made)
    if task == "image":
        image = torch.randn(records, 1, 8, 8, generator=made)
        return Spec("image", labels=("a", "b", "c"), image=(1, 8, 8)), Examples(
            {"image": image, "label": labels}
        )
    tokens = torch.randint(2, 20, (records, 6), generator=made)
    tokens[1, 3:] = PAD
    fields = {"tokens": tokens}
    if task in ("classification", "intent_slots"):
        fields["label"] = labels
    if task in ("tagging", "intent_slots"):
        fields["tags"] = torch.where(tokens == PAD, -1, tokens % 2)
    if task == "language":
        fields["next"] = torch.cat([tokens[:, 1:], torch.full((records, 1), PAD)], 1)
    spec = Spec(
        task,
        vocabulary=20,
        labels=("a", "b", "c") if "label" in fields else (),
        tags=("O", "B-x") if "tags" in fields else (),
        length=6,
    )
    return spec, Examples(fields)


@pytest.mark.parametrize(
    ("model", "task"), [(model, task) for model, kind in MODELS.items() for task in kind.tasks]
)
def test_products_and_norms_equal_those_of_autograd_for_every_model(model: str, task: str) -> None:
    spec, examples = examples_of(task)
    module = build_model(spec, Model(name=model, embedding=8, hidden=8), 1)
    learner = make_task(spec)
    start = {name: p.double() for name, p in parameters_of(module).items()}
    rng = torch.Generator().manual_seed(5)
    change = {n: torch.randn(p.shape, generator=rng, dtype=torch.float64) for n, p in start.items()}
    losses = record_losses(module, learner, examples)
    module.eval()
    slow = []
    for row in range(len(examples)):
        leaves = {name: p.clone().requires_grad_() for name, p in start.items()}
        one = {n: f[row : row + 1] for n, f in examples.fields.items()}
        one = {n: f.double() if f.is_floating_point() else f for n, f in one.items()}
        outputs = functional_call(module, leaves, tuple(one[name] for name in learner.inputs))
        grads = torch.autograd.grad(
            learner.losses(outputs, one).sum(), list(leaves.values()), allow_unused=True
        )
        slow.append(
            sum(
                float((g * change[n]).sum())
                for n, g in zip(leaves, grads, strict=True)
                if g is not None
            )
        )
    np.testing.assert_allclose(directional(losses, start, change), slow, rtol=1e-6)


@pytest.mark.parametrize("model", ["bag", "bilstm", "transformer"])
def test_the_cosine_is_that_of_update_and_descent_direction(model: str) -> None:
    spec, examples = examples_of("intent_slots")
    module = build_model(spec, Model(name=model, embedding=8, hidden=8), 1).eval()
    learner = make_task(spec)
    start = parameters_of(module)
    double = {name: p.double() for name, p in start.items()}
    fields = examples.fields
    targets = [fields[name] for name in sorted(fields)]

    def losses(outputs: Params, *values: torch.Tensor) -> torch.Tensor:
        return learner.losses(outputs, dict(zip(sorted(fields), values, strict=True)))

    asked = (module, losses, [fields["tokens"]], targets, Clip(1.0), double)
    norms = clipped_gradients(*asked).norms.numpy()
    np.testing.assert_allclose(
        clipped_gradients(*asked, method="loop").norms.numpy(), norms, rtol=1e-6
    )
    rows = []
    for row in range(len(examples)):
        leaves = {name: p.clone().requires_grad_() for name, p in double.items()}
        one = {n: f[row : row + 1] for n, f in fields.items()}
        loss = learner.losses(functional_call(module, leaves, (one["tokens"],)), one).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        rows.append(torch.cat([g.flatten() for g in grads]).numpy())
    grad = np.stack(rows)
    change = {name: -0.1 * (g + 0.01) for name, g in double.items()}
    flat = torch.cat([c.flatten() for c in change.values()]).numpy()
    seen = observe(record_losses(module, learner, examples), norms, start, [change, change])
    assert seen.cosine.shape == (2, 7)
    np.testing.assert_allclose(seen.product[0], -grad @ flat, rtol=1e-6)
    expected = -grad @ flat / np.linalg.norm(grad, axis=1) / np.linalg.norm(flat)
    np.testing.assert_allclose(seen.cosine[1], expected, rtol=1e-6)
    with torch.no_grad():
        after = learner.losses(
            functional_call(module, moved_along(start, change, 1.0), (fields["tokens"],)), fields
        )
    np.testing.assert_allclose(UPDATE_ATTACKS["device_loss"](seen)[0], -after.numpy(), atol=1e-12)


def test_an_update_of_nothing_tells_nothing() -> None:
    spec, examples = examples_of("classification")
    module = build_model(spec, Model(name="bag", embedding=8), 1)
    still = {name: torch.zeros_like(p) for name, p in parameters_of(module).items()}
    losses = record_losses(module, make_task(spec), examples)
    seen = observe(losses, np.ones(7), parameters_of(module), [still])
    assert (seen.cosine == 0).all()
    assert (UPDATE_ATTACKS["loss_drop"](seen) == 0).all()


def test_fedmia_equals_a_direct_computation() -> None:
    rng = generator(1, "fedmia")
    scores = rng.normal(size=(5, 11))
    slow = np.empty_like(scores)
    for target in range(5):
        others = np.delete(scores, target, axis=0)
        slow[target] = stats.norm.cdf((scores[target] - others.mean(0)) / others.std(0, ddof=1))
    np.testing.assert_allclose(standing(scores), slow, atol=1e-9)
    seen = Observed(scores, scores, np.zeros(11), -scores)
    np.testing.assert_allclose(UPDATE_ATTACKS["fedmia_loss"](seen), slow, atol=1e-9)
    np.testing.assert_allclose(UPDATE_ATTACKS["fedmia_cosine"](seen), slow, atol=1e-9)


def test_fedmia_says_nothing_where_all_devices_agree_and_wants_three() -> None:
    assert (standing(np.ones((4, 3))) == 0.5).all()
    with pytest.raises(WrongInput, match="at least 2 others of its round, got 1"):
        standing(np.ones((2, 3)), "fedmia_loss")


def test_one_plain_step_gives_its_tokens_and_labels_away_and_dense_noise_hides_the_tokens() -> None:
    spec, drawn = examples_of("classification", records=4)
    examples = Examples({**drawn.fields, "label": torch.tensor([0, 2, 2, 0])})
    module = build_model(spec, Model(name="bag", embedding=8), 1)
    loss = make_task(spec).losses(module(examples.fields["tokens"]), examples.fields).mean()
    loss.backward()
    moves = {name: -0.1 * p.grad for name, p in module.named_parameters() if p.grad is not None}
    table = moves["embedding.weight"]
    bias = moves["heads.label.bias"]
    tokens = np.isin(np.arange(20), np.setdiff1d(examples.fields["tokens"].numpy(), [PAD]))
    labels = np.isin(np.arange(3), examples.fields["label"].numpy())
    assert hits(leaked_tokens(table), tokens) == (1.0, 1.0)
    assert hits(leaked_labels(bias), labels) == (1.0, 1.0)
    noised = table + 1e-3 * torch.randn(table.shape, generator=torch.Generator().manual_seed(1))
    precision, recall = hits(leaked_tokens(noised), tokens)
    assert recall == 1.0
    assert precision == tokens.sum() / 19  # all words are named, and so none


def test_precision_and_recall_by_hand() -> None:
    truth = np.array([True, True, False, False])
    assert hits(np.array([True, False, True, False]), truth) == (0.5, 0.5)
    assert hits(np.zeros(4, dtype=bool), truth) == (1.0, 0.0)
