"""The score store and the attack ladder against direct computations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.audit.attacks import (
    ATTACKS,
    calibrated_loss,
    choose,
    lira,
    lira_offline,
    ratio,
    relative,
)
from fedsim.audit.quantile import quantile_regression
from fedsim.audit.scores import Predictions, Scores, Target, fair_coins, load_scores, predictions
from fedsim.errors import WrongInput
from fedsim.seeds import generator


def planted(models: int = 12, records: int = 40, shift: float = 1.5, seed: int = 0) -> Scores:
    """Scores with phi ~ N(record's own mean, 1), `shift` higher in models that hold the record."""
    rng = generator(seed, "planted")
    keep = fair_coins(models, records, seed)
    phi = rng.normal(size=records) + rng.normal(size=(models, records)) + shift * keep
    logp = -np.logaddexp(0, -phi)
    return Scores(keep, Predictions(logp, phi, -logp, phi > 0))


def test_coins_are_fair_named_and_come_in_complementary_pairs() -> None:
    keep = fair_coins(8, 5000, seed=3)
    assert (keep[0::2] != keep[1::2]).all()
    assert (keep == fair_coins(8, 5000, seed=3)).all()
    assert (keep[:4] == fair_coins(4, 5000, seed=3)).all()
    # 4 means of 5,000 fair coins: outside 4 standard errors with probability under 3e-4
    assert np.abs(keep[0::2].mean(1) - 0.5).max() < 4 * 0.5 / np.sqrt(5000)
    with pytest.raises(WrongInput, match="even number, got 3"):
        fair_coins(3, 10, seed=0)


def test_predictions_equal_the_formulas_on_small_logits() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]])
    labels = torch.tensor([0, 2])
    p = logits.double().softmax(-1).numpy()
    got = predictions(logits, labels)
    for row, label in enumerate([0, 2]):
        rest = [p[row, c] for c in range(3) if c != label]
        assert got.logp[row] == pytest.approx(np.log(p[row, label]))
        assert got.phi[row] == pytest.approx(np.log(p[row, label]) - np.log(sum(rest)))
        entropy = -(1 - p[row, label]) * np.log(p[row, label]) - sum(
            q * np.log(1 - q) for q in rest
        )
        assert got.entropy[row] == pytest.approx(entropy)
    assert got.correct.tolist() == [False, True]


def test_phi_stays_finite_where_the_probability_rounds_to_one() -> None:
    got = predictions(torch.tensor([[200.0, 0.0, -5.0]]), torch.tensor([0]))
    assert got.phi[0] == pytest.approx(200.0, abs=0.01)
    assert np.isfinite(got.entropy).all()


def test_the_target_and_its_pair_are_no_references_of_it() -> None:
    scores = planted(models=6)
    target = scores.target(3)
    assert target.references == 4
    assert (target.others.phi == scores.predictions.phi[[4, 5, 0, 1]]).all()
    assert (target.keep.sum(0) == 2).all()
    with pytest.raises(WrongInput, match="up to 4"):
        scores.target(0, 6)


def test_scores_without_pairs_are_refused() -> None:
    scores = planted(models=4)
    with pytest.raises(WrongInput, match="complementary"):
        Scores(scores.keep[[0, 0, 2, 3]], scores.predictions)


def test_a_store_survives_its_file(tmp_path: Path) -> None:
    scores = planted(models=4)
    scores.save(tmp_path / "scores.npz")
    again = load_scores(tmp_path / "scores.npz")
    assert (again.keep == scores.keep).all()
    assert (again.predictions.phi == scores.predictions.phi).all()


@pytest.mark.parametrize("sigma", ["pooled", "example"])
def test_lira_equals_a_direct_computation(sigma: str) -> None:
    scores = planted()
    target = scores.target(5)
    model = 5
    others = [m for m in range(12) if m not in (4, 5)]
    phi = scores.predictions.phi
    keep = scores.keep
    groups = {
        side: [[phi[m, x] for m in others if keep[m, x] == side] for x in range(40)]
        for side in (True, False)
    }
    spread = {}
    for side, rows in groups.items():
        own = [np.var(row, ddof=1) for row in rows]
        weights = [len(row) - 1 for row in rows]
        pooled = np.average(own, weights=weights)
        spread[side] = np.sqrt(own if sigma == "example" else np.full(40, pooled))
    slow = []
    one_sided = []
    for x in range(40):
        inside = stats.norm(np.mean(groups[True][x]), spread[True][x])
        outside = stats.norm(np.mean(groups[False][x]), spread[False][x])
        slow.append(np.log(inside.pdf(phi[model, x]) / outside.pdf(phi[model, x])))
        one_sided.append(np.log(outside.cdf(phi[model, x])))
    np.testing.assert_allclose(lira(target, sigma), slow, atol=1e-6)
    np.testing.assert_allclose(lira_offline(target, sigma), one_sided, atol=1e-6)


def test_rmia_equals_a_direct_computation_over_a_population() -> None:
    scores = planted()
    everyone = ratio(scores.target(2))
    others = [m for m in range(12) if m not in (2, 3)]
    p = np.exp(scores.predictions.logp)
    likelihood = p[2] / p[others].mean(0)
    np.testing.assert_allclose(everyone, np.log(likelihood), atol=1e-6)
    slow = [
        np.mean([likelihood[x] / likelihood[z] >= 1.5 for z in range(20)]) for x in range(20, 40)
    ]
    np.testing.assert_allclose(relative(everyone[20:], everyone[:20], gamma=1.5), slow, atol=1e-6)


def test_calibrated_loss_takes_off_the_mean_of_the_models_without_the_record() -> None:
    scores = planted()
    phi = scores.predictions.phi
    keep = scores.keep
    others = [m for m in range(12) if m not in (0, 1)]
    slow = [phi[0, x] - np.mean([phi[m, x] for m in others if not keep[m, x]]) for x in range(40)]
    np.testing.assert_allclose(calibrated_loss(scores.target(0)), slow, atol=1e-9)


def test_lira_with_one_model_on_each_side_is_refused() -> None:
    with pytest.raises(WrongInput, match="attack 'lira' needs at least 2 IN"):
        lira(planted().target(0, 2))


def test_references_that_all_agree_are_refused() -> None:
    scores = planted()
    constant = Predictions(*(np.zeros_like(scores.predictions.phi) for _ in range(3)), scores.keep)
    with pytest.raises(WrongInput, match="same phi in all references"):
        lira(Scores(scores.keep, constant).target(0))


def test_the_attacks_without_references_run_and_the_others_are_refused_by_name() -> None:
    target = planted().target(0, 0)
    for name, attack in ATTACKS.items():
        if name in ("loss", "gap", "modified_entropy"):
            assert attack(target).shape == (40,)
        else:
            with pytest.raises(
                WrongInput, match=f"attack '{name.replace('_loss', ' loss')}|{name[:4]}"
            ):
                attack(target)


def test_the_choice_climbs_the_ladder_with_the_references() -> None:
    assert [choose(r) for r in (0, 2, 4, 8, 62, 64)] == [
        "loss", "ratio", "ratio", "lira", "lira", "lira_per_example",
    ]  # fmt: skip
    assert [choose(r, online=False) for r in (0, 2, 8, 64)] == [
        "loss", "ratio_offline", "lira_offline", "lira_offline",
    ]  # fmt: skip


def test_references_help_on_records_that_differ_and_an_attack_never_reads_the_answer() -> None:
    scores = planted(models=20, records=4000)
    target = scores.target(0)
    blind = Target(np.zeros_like(target.member), target.own, target.keep, target.others)
    found = {}
    for name, attack in ATTACKS.items():
        score = attack(target)
        assert (score == attack(blind)).all()
        found[name] = stats.mannwhitneyu(score[target.member], score[~target.member]).statistic / (
            target.member.sum() * (~target.member).sum()
        )
    # Phi(1.5 / 2) = .773 blind to the record's mean, Phi(1.5 / sqrt 2) = .856 knowing it; s.e. .006
    assert found["loss"] == pytest.approx(0.773, abs=0.03)
    assert found["lira"] == pytest.approx(0.856, abs=0.03)
    assert found["loss"] < found["ratio"] < found["lira"]


def test_quantile_regression_holds_its_false_positive_rate_and_finds_members() -> None:
    rng = generator(0, "quantile")
    features = rng.normal(size=(6000, 2))
    phi = 3 * features[:, 0] + rng.normal(size=6000)
    phi[:1000] += 3
    score = quantile_regression(features[:2000], phi[:2000], features[2000:], phi[2000:], fpr=0.05)
    # s.e. .007 of the records and .004 of the 2,000 that shift the quantile: 3 of both are .025
    assert (score[1000:] > 0).mean() == pytest.approx(0.05, abs=0.025)
    assert (score[:1000] > 0).mean() > 0.7
    with pytest.raises(WrongInput, match="wants 4,000 pool"):
        quantile_regression(features[:10], phi[:10], features[:100], phi[:100])
