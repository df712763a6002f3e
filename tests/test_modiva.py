"""Extraction of planted codes: by gradient, by exhaustion and by beam."""

from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedsim.audit.extraction import Guess, Loss, beam, exhaustive, one_hot, success
from fedsim.audit.modiva import Search, modiva, modiva_each
from fedsim.audit.whitebox import next_log_probs, relaxed_loss
from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models import build_model, parameters_of
from fedsim.seeds import torch_generator
from fedsim.types import Params, Spec

PREFIX = [2, 3, 4]
DIGITS = torch.arange(5, 15)
CODE = torch.tensor([7, 1, 4, 9])
SPEC = Spec(task="classification", vocabulary=16, labels=("other", "canary"), length=7)
SMALL = Model(name="bilstm", embedding=8, hidden=16)


@lru_cache
def model_with_canary() -> tuple[torch.nn.Module, Params]:
    """A BiLSTM that was trained to tell one code from all others behind the same prefix."""
    module = build_model(SPEC, SMALL, seed=1)
    rng = torch_generator(1, "codes")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(250):
        codes = torch.randint(10, (32, 4), generator=rng)
        codes[:16] = CODE
        changed = torch.arange(8, 16)
        codes[changed, torch.randint(4, (8,), generator=rng)] = torch.randint(
            10, (8,), generator=rng
        )
        labels = (codes == CODE).all(1).long()
        optimizer.zero_grad()
        cross_entropy(module(sentences(codes))["label"], labels).backward()
        optimizer.step()
    return module, parameters_of(module)


def sentences(codes: Tensor) -> Tensor:
    return torch.cat([torch.tensor(PREFIX).repeat(len(codes), 1), DIGITS[codes]], dim=1)


def canary_loss(module: torch.nn.Module, params: Params) -> Loss:
    def losses(outputs: dict[str, Tensor], ids: Tensor) -> Tensor:
        return cross_entropy(
            outputs["label"], torch.ones(len(ids), dtype=torch.int64), reduction="none"
        )

    tokens = torch.tensor([*PREFIX, 5, 5, 5, 5])
    return relaxed_loss(module, params, losses, tokens, gap=3, candidates=DIGITS)


def test_certain_mixtures_have_the_loss_of_the_real_sentence() -> None:
    module, params = model_with_canary()
    codes = torch.randint(10, (20, 4), generator=torch_generator(2))
    got = canary_loss(module, params)(one_hot(codes, 10))
    want = cross_entropy(module(sentences(codes))["label"], torch.ones(20).long(), reduction="none")
    torch.testing.assert_close(got, want.detach())


def test_restarts_share_nothing() -> None:
    loss = canary_loss(*model_with_canary())
    mixtures = torch.rand(5, 4, 10, generator=torch_generator(3)).softmax(-1)
    torch.testing.assert_close(loss(mixtures)[2:3], loss(mixtures[2:3]))


@pytest.mark.parametrize("gumbel", [False, True])
def test_modiva_finds_a_planted_code_and_reaches_the_exhaustive_ceiling(gumbel: bool) -> None:
    loss = canary_loss(*model_with_canary())
    ceiling = exhaustive(loss, 4, 10)
    assert success(ceiling, CODE.tolist(), 10).exact_match
    found = modiva(loss, 4, 10, Search(steps=150, gumbel=gumbel), torch_generator(4))
    right = success(found, CODE.tolist(), 10)
    assert right.digit_accuracy >= success(ceiling, CODE.tolist(), 10).digit_accuracy - 0.1
    assert found.loss >= ceiling.loss
    again = modiva(loss, 4, 10, Search(steps=150, gumbel=gumbel), torch_generator(4))
    assert again == found


def test_several_sentences_are_sought_as_one_batch() -> None:
    module, params = model_with_canary()

    def losses(outputs: dict[str, Tensor], ids: Tensor) -> Tensor:
        return cross_entropy(
            outputs["label"], torch.ones(len(ids), dtype=torch.int64), reduction="none"
        )

    both = torch.tensor([[*PREFIX, 5, 5, 5, 5], [4, 3, 2, 5, 5, 5, 5]])
    mixtures = torch.rand(6, 4, 10, generator=torch_generator(5)).softmax(-1)
    joint = relaxed_loss(module, params, losses, both, 3, DIGITS)
    alone = [relaxed_loss(module, params, losses, tokens, 3, DIGITS) for tokens in both]
    torch.testing.assert_close(
        joint(mixtures), torch.cat([alone[0](mixtures[:3]), alone[1](mixtures[3:])])
    )
    found = modiva_each(joint, 4, 10, Search(steps=150), torch_generator(4), targets=2)
    assert found[0].code == tuple(CODE.tolist())
    for one, guess in zip(alone, found, strict=True):
        torch.testing.assert_close(float(one(one_hot(torch.tensor([guess.code]), 10))), guess.loss)


def test_a_model_without_the_canary_gives_away_nothing() -> None:
    # 20 untrained models, 80 digits: right ones are Bin(80, .1); over 17 with a chance of .1 %.
    right = 0.0
    for seed in range(20):
        module = build_model(SPEC, SMALL, seed=100 + seed)
        loss = canary_loss(module, parameters_of(module))
        found = modiva(loss, 4, 10, Search(restarts=2, steps=10), torch_generator(seed))
        right += (
            4
            * success(
                found, torch.randint(10, (4,), generator=torch_generator(seed, 1)).tolist(), 10
            ).digit_accuracy
        )
    assert right <= 17


def test_success_stands_beside_chance() -> None:
    found = success(Guess((1, 2, 3, 4), 0.0), [1, 2, 0, 4], 10)
    assert (found.exact_match, found.digit_accuracy, found.hamming) == (False, 0.75, 0.25)
    assert found.chance_digit == 0.1
    assert found.chance_exact == pytest.approx(1e-4)


def test_a_beam_finds_what_greedy_misses_and_a_full_beam_is_exhaustive() -> None:
    first = torch.tensor([0.6, 0.4]).log()
    second = torch.tensor([[0.5, 0.5], [0.05, 0.95]]).log()

    def odds(codes: Tensor) -> Tensor:
        return first.repeat(len(codes), 1) if codes.shape[1] == 0 else second[codes[:, -1]]

    assert beam(odds, 2, 1)[0].code[0] == 0
    assert beam(odds, 2, 2)[0].code == (1, 1)
    full = beam(odds, 2, 4)
    assert sum(2.718281828**-guess.loss for guess in full) == pytest.approx(1.0, abs=1e-5)


def test_greedy_extraction_from_a_language_model_that_memorised_a_code() -> None:
    spec = Spec(task="language", vocabulary=16, length=7)
    module = build_model(spec, Model(name="lstm", embedding=8, hidden=16), seed=1)
    line = sentences(CODE[None])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        logits = module(line[:, :-1])["next"]
        cross_entropy(logits.flatten(0, 1), line[0, 1:]).backward()
        optimizer.step()
    odds = next_log_probs(module, parameters_of(module), torch.tensor(PREFIX), DIGITS)
    for width in (1, 5):
        assert beam(odds, 4, width)[0].code == tuple(CODE.tolist())


def test_a_model_without_an_embedding_table_is_refused() -> None:
    with pytest.raises(WrongInput, match=r"Linear.tables names none"):
        relaxed_loss(torch.nn.Linear(2, 2), {}, lambda o, i: i, torch.zeros(2).long(), 0, DIGITS)


def test_spaces_too_large_to_exhaust_are_refused() -> None:
    with pytest.raises(WrongInput, match="up to 10,000 codes, not 100,000"):
        exhaustive(lambda m: m.sum((1, 2)), 5, 10)
