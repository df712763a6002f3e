"""The character CNN: what letters tell, alone and in a cohort, under DP and under ModIvA."""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from clients.clipping import Clip, clipped_gradients
from clients.training import Assignment, Trainer
from fedsim.audit.extraction import one_hot
from fedsim.audit.whitebox import relaxed_loss
from fedsim.config import Dp, Model, Train
from fedsim.errors import WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.models.tasks import make_task
from fedsim.privacy.noise import Seeded
from fedsim.types import Examples, Spec

WORDS = ("call", "calls", "mall", "my", "pin", "play", "some", "songs")
SPEC = Spec(
    "intent_slots",
    vocabulary=2 + len(WORDS),
    words=WORDS,
    labels=("a", "b"),
    tags=("O", "B-x"),
    length=5,
)
MODEL = Model(name="bilstm", embedding=6, hidden=5, characters=True)


def examples(count: int, seed: int) -> Examples:
    rng = torch.Generator().manual_seed(seed)
    return Examples(
        {
            "tokens": torch.randint(2, SPEC.vocabulary, (count, 5), generator=rng),
            "label": torch.randint(0, 2, (count,), generator=rng),
            "tags": torch.randint(0, 2, (count, 5), generator=rng),
        }
    )


def test_words_of_like_letters_have_like_features_whatever_their_embeddings() -> None:
    module = build_model(SPEC, MODEL, 1)
    features = module.characters(
        torch.tensor([2 + WORDS.index(w) for w in ("call", "calls", "songs")])
    )  # type: ignore[operator]
    near = (features[0] - features[1]).norm()
    far = (features[0] - features[2]).norm()
    assert near < far
    assert features.shape == (3, 32)


@pytest.mark.parametrize("unit", ["none", "example"])
def test_a_cohort_with_characters_trains_as_one_device_after_another(unit: str) -> None:
    task = make_task(SPEC)
    train = Train(batch_size=3, lr=0.5)
    module = build_model(SPEC, MODEL, 1)
    dp = Dp(unit=unit, trust="local", noise_multiplier=0.5)  # type: ignore[arg-type]
    assigned = [Assignment(f"d{i}", examples(3 + 2 * i, i), 1.0, 4) for i in range(4)]
    params = parameters_of(module)

    def trained(part: list[Assignment]) -> dict[str, Tensor]:
        return Trainer(module, task, train, dp=dp, noise=Seeded(3)).train(params, part, 7, 1).delta

    together = trained(assigned)
    each = [trained([a]) for a in assigned]
    assert any(name.startswith("characters.") for name in together)
    for name, delta in together.items():
        torch.testing.assert_close(delta, sum(one[name] for one in each), rtol=1e-4, atol=1e-5)
        assert delta.abs().max() > 0


def test_gradients_of_letters_are_clipped_as_an_autograd_loop_does() -> None:
    module = build_model(SPEC, MODEL, 1).double()
    task = make_task(SPEC)
    batch = examples(6, 3)
    names = sorted(batch.fields)

    def losses(outputs: dict[str, Tensor], *targets: Tensor) -> Tensor:
        return task.losses(outputs, dict(zip(names, targets, strict=True)))

    given = ([batch.fields["tokens"]], [batch.fields[n] for n in names], Clip(0.3))
    fast, slow = (clipped_gradients(module, losses, *given, method=m) for m in ("exact", "loop"))  # type: ignore[arg-type]
    torch.testing.assert_close(fast.norms, slow.norms, rtol=1e-9, atol=1e-10)
    for name, found in fast.sums.items():
        torch.testing.assert_close(found, slow.sums[name], rtol=1e-9, atol=1e-10)


def test_folded_into_one_table_the_model_says_the_same_and_modiva_can_mix_its_words() -> None:
    module = build_model(SPEC, MODEL, 1).eval()
    task = make_task(SPEC)
    batch = examples(4, 5)
    params = parameters_of(module)
    twin, folded = module.as_one_table(params)  # type: ignore[operator]
    tokens = batch.fields["tokens"]
    ours = functional_call(module, params, (tokens,))
    its = functional_call(twin, folded, (tokens,))
    for name in ours:
        torch.testing.assert_close(its[name], ours[name])
    candidates = torch.arange(2, 6)
    fields = {name: t[:1] for name, t in batch.fields.items()}

    def losses(outputs: dict[str, Tensor], ids: Tensor) -> Tensor:
        wide = {n: t.expand(len(ids), *t.shape[1:]) for n, t in fields.items()}
        return task.losses(outputs, {**wide, "tokens": ids})

    loss = relaxed_loss(twin, folded, losses, tokens[0], 1, candidates)  # type: ignore[arg-type]
    code = torch.tensor([[3, 0]])
    written = tokens[:1].clone()
    written[0, 1:3] = candidates[code[0]]
    direct = task.losses(functional_call(module, params, (written,)), fields | {"tokens": written})
    torch.testing.assert_close(loss(one_hot(code, 4)), direct)


def test_letters_are_refused_where_there_are_none_or_the_model_reads_none() -> None:
    hashed = Spec("intent_slots", vocabulary=50, labels=("a", "b"), tags=("O",), length=5)
    with pytest.raises(WrongInput, match="names none"):
        build_model(hashed, MODEL, 1)
    with pytest.raises(WrongInput, match=r"is for model\.name = 'bilstm'"):
        build_model(SPEC, Model(name="bag", characters=True), 1)


def test_a_local_step_is_the_gradient_of_the_words_own_letters() -> None:
    """Seen to fail: letters looked up by the rows that a device holds instead of by the word's own
    id.
    """
    module = build_model(SPEC, MODEL, 1)
    task = make_task(SPEC)
    batch = examples(4, 9)
    params = parameters_of(module)
    trainer = Trainer(module, task, Train(batch_size=4, lr=0.5))
    delta = trainer.train(params, [Assignment("d", batch, 1.0)], 7, 1).delta
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    loss = task.losses(
        functional_call(module, leaves, (batch.fields["tokens"],)), batch.fields
    ).mean()
    for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        torch.testing.assert_close(delta[name].float(), -0.5 * grad, rtol=1e-3, atol=1e-6)
