"""What may be claimed and what is refused; planning and calibration; the statement.

Seen to fail: "fixed" let through by `amplification`, add-or-remove claimed for rosters that are
normalised, `target_delta` without the factor 10, calibration that returns the bad side of its last
step.
"""

from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from factory import configured

from fedsim.app.server.calibration import calibrated
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.privacy.accounting import Event, epsilon
from fedsim.privacy.claims import amplification, check_dp, relation, target_delta
from fedsim.privacy.mechanism import device_mechanism, most_participations
from fedsim.privacy.planning import calibrate, guaranteed, make_plan
from strategies.aggregation import AGGREGATORS
from strategies.aggregation import Rule as ServerRule
from strategies.aggregation.averages import FedAvg
from strategies.selection import SELECTORS, Rule
from strategies.selection.by_activity import uniform


def config(**changes: object) -> Config:
    return configured({"dp.unit": "device", "aggregation.rule": "fedavg"}, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dp__noise_multiplier": 0.0}, "noise_multiplier = 0 hides nothing"),
        ({"dp__amplification": "claim", "selection__sampling": "fixed"}, "no independent coins"),
        (
            {"dp__amplification": "claim", "selection__rule": "round_robin"},
            "does not state independent",
        ),
        (
            {"dp__amplification": "claim", "selection__rule": "own:code"},
            "does not state independent",
        ),
        ({"dp__amplification": "claim", "dp__trust": "secure_sum"}, "the server draws the cohort"),
        ({"dp__trust": "secure_sum", "aggregation__rule": "median"}, "needs single updates"),
        ({"aggregation__rule": "median"}, "no known bound"),
        ({"dp__clipping": "per_layer"}, "has no clip to go by"),
        ({"dp__relation": "add_or_remove"}, "normalised over the real roster"),
        ({"dp__trust": "local"}, "protects examples"),
        ({"selection__rule": "loss"}, "looks at protected data"),
        ({"availability__rule": "clock"}, "own records decide"),
        ({"dp__correlation": "banded", "dp__clipping": "adaptive"}, "needs dp.trust|fixed clip"),
        ({"dp__unit": "example", "dp__trust": "secure_sum"}, "ONE local step"),
        (
            {"dp__unit": "example", "dp__trust": "local", "evaluation__on": "devices"},
            "unnoised scores",
        ),
        ({"dp__unit": "example", "dp__correlation": "banded"}, 'is for dp.unit = "device"'),
    ],
)
def test_impossible_requests_are_refused_by_a_sentence(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(WrongInput, match=sentence) as error:
        check_dp(config(**changes))
    assert "\n" not in str(error.value)


def test_what_is_possible_is_not_refused() -> None:
    assert check_dp(Config()) is None
    assert check_dp(config()) is None
    assert check_dp(config(dp__unit="example")) is None
    assert check_dp(config(dp__trust="secure_sum")) is None
    assert check_dp(config(dp__relation="add_or_remove", selection__total_score=100.0)) is None


def test_adaptive_clipping_needs_enough_count_noise() -> None:
    with pytest.raises(WrongInput, match=r"needs 2 x dp\.count_noise above"):
        device_mechanism(config(dp__clipping="adaptive", dp__count_noise=0.4))


def test_a_weight_above_the_public_bound_has_no_event() -> None:
    with pytest.raises(WrongInput, match="at most 1"):
        device_mechanism(config()).event(0.1, 1.5)


def test_amplification_is_claimed_only_for_independent_secret_coins() -> None:
    assert amplification(config()).claimed
    for changes in (
        {"selection__sampling": "fixed"},
        {"selection__rule": "least_used"},
        {"dp__trust": "secure_sum"},
        {"dp__min_separation": 4},
        {"dp__correlation": "banded"},
        {"dp__amplification": "none"},
    ):
        assert not amplification(config(**changes)).claimed


def test_a_new_rule_claims_nothing_until_its_entry_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail: `independent` or `own_score` True by default."""
    monkeypatch.setitem(SELECTORS, "mine", Rule(uniform))
    mine = config(selection__rule="mine", selection__total_score=100.0)
    assert not amplification(mine).claimed
    assert relation(mine) == "zero_out"
    monkeypatch.setitem(SELECTORS, "mine", Rule(uniform, independent=True, own_score=True))
    assert amplification(mine).claimed
    assert relation(mine) == "add_or_remove"


def test_a_rule_that_reads_losses_is_refused_by_that_and_not_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen to fail: `check_dp` that compares with the name "loss"."""
    monkeypatch.setitem(SELECTORS, "mine", Rule(uniform, independent=True, reads_losses=True))
    with pytest.raises(WrongInput, match="'mine' looks at protected data"):
        check_dp(config(selection__rule="mine"))
    with pytest.raises(WrongInput, match="'mine' looks at protected data"):
        check_dp(config(selection__rule="mine", dp__unit="example"))


def test_a_new_server_rule_is_no_sum_until_its_entry_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen to fail: `of_sum` True by default."""
    monkeypatch.setitem(AGGREGATORS, "mine", ServerRule(FedAvg))
    for changes in ({}, {"dp__trust": "secure_sum"}):
        with pytest.raises(WrongInput, match=r"aggregation\.rule = 'mine'"):
            check_dp(config(aggregation__rule="mine", **changes))
    with pytest.raises(WrongInput, match=r"aggregation\.rule = 'own:code'"):
        check_dp(config(aggregation__rule="own:code"))


def test_the_relation_is_the_one_that_the_mechanism_carries() -> None:
    assert relation(config()) == "zero_out"
    assert relation(config(selection__total_score=100.0)) == "add_or_remove"
    assert relation(config(selection__total_score=100.0, selection__rule="mixture")) == "zero_out"
    assert relation(config(dp__unit="example")) == "add_or_remove"
    assert relation(config(dp__unit="example", dp__trust="secure_sum")) == "zero_out"


@pytest.mark.parametrize(
    ("units", "delta"), [(682, 1e-4), (60, 1e-3), (100, 1e-3), (101, 1e-4), (1, 0.1), (10**6, 1e-7)]
)
def test_delta_follows_the_protected_units(units: int, delta: float) -> None:
    assert target_delta(config(), units)[0] == delta
    assert delta <= 1 / (10 * units)


def test_a_delta_set_by_name_is_kept_and_warned_of_where_it_is_too_large() -> None:
    assert target_delta(config(dp__delta=1e-3), 100) == (1e-3, "set by name")
    found, rule = target_delta(config(dp__delta=0.02), 60)
    assert found == 0.02
    assert "WARNING" in rule


def test_the_guarantee_takes_public_bounds_and_nothing_less() -> None:
    activity = np.array([1, 4, 64])
    claimed, _ = guaranteed(config(selection__cap=0.2, train__rounds=50), 1e-5, activity)
    assert claimed == epsilon([Event(1.0, 0.2, 50)], 1e-5)
    uncapped, why = guaranteed(
        config(selection__rule="uniform", selection__cohort=1), 1e-5, activity
    )
    assert uncapped == pytest.approx(epsilon([Event(1.0, 1 / 3, 20)], 1e-5))
    assert "uniform selection" in why
    every, _ = guaranteed(config(dp__trust="secure_sum", train__rounds=7), 1e-5, activity)
    assert every == epsilon([Event(1.0, 1.0, 7)], 1e-5)
    limited = config(
        dp__trust="secure_sum", train__rounds=40, dp__min_separation=4, dp__max_participations=3
    )
    assert most_participations(limited) == 3
    assert guaranteed(limited, 1e-5, activity)[0] == epsilon([Event(1.0, 1.0, 3)], 1e-5)


def test_example_level_guarantees_the_worst_public_size_in_every_round() -> None:
    settings = config(dp__unit="example", train__rounds=10, train__batch_size=8)
    found, _ = guaranteed(settings, 1e-5, np.array([1, 4, 16, 64]))
    each = [epsilon([Event(1.0, min(1.0, 8 / n), 10 * -(-n // 8))], 1e-5) for n in (1, 4, 16, 64)]
    assert found == pytest.approx(max(each))


def test_correlated_noise_costs_one_release_over_the_whole_run() -> None:
    settings = config(
        dp__correlation="banded", dp__min_separation=5, train__rounds=20, dp__noise_multiplier=2.0
    )
    assert guaranteed(settings, 1e-5, np.array([1]))[0] == pytest.approx(
        epsilon([Event(2.0)], 1e-5)
    )


def test_the_plan_rises_with_activity_and_stays_below_the_guarantee() -> None:
    activity = np.array([0, 1, 2, 8, 64])
    plan = make_plan(config(selection__cap=0.4), 1e-5, activity, activity / 160, np.ones(5))
    assert plan.planned[0] == 0
    assert (np.diff(plan.planned) > 0).all()
    local = make_plan(config(dp__unit="example"), 1e-5, activity, np.full(5, 0.5), np.ones(5))
    assert 0 < local.planned.max() < local.guarantee


@pytest.mark.slow
@pytest.mark.parametrize("what", ["noise", "cap", "rounds"])
def test_calibration_reaches_the_target_and_no_more_than_needed(what: str) -> None:
    settings = config(selection__cap=0.3, train__rounds=30)
    activity = np.array([1, 2])
    found = calibrate(settings, 4.0, what, 1e-5, activity)
    spent = guaranteed(found, 1e-5, activity)[0]
    assert spent <= 4.0
    assert spent > (3.97 if what != "rounds" else 3.0)


def test_calibration_refuses_what_cannot_be_had() -> None:
    for target, what, sentence in (
        (0.0, "noise", "cannot be reached"),
        (4.0, "lr", "is not known"),
    ):
        with pytest.raises(WrongInput, match=sentence):
            calibrate(config(), target, what, 1e-5, np.array([1]))
    with pytest.raises(WrongInput, match="one round alone costs more"):
        calibrate(config(dp__noise_multiplier=0.1), 0.5, "rounds", 1e-5, np.array([1]))
    with pytest.raises(WrongInput, match="promises nothing"):
        calibrated(Config(), 1.0, "noise")


@pytest.mark.slow
def test_show_and_calibrate_tell_what_a_run_costs(fedsim: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        '[dp]\nunit = "device"\n[selection]\ncap = 0.2\n[aggregation]\nrule = "fedavg"\n'
    )
    shown = " ".join(fedsim("show", "x.toml").stdout.split())
    assert "Privacy of one device (zero_out, trust central): promised epsilon at most" in shown
    assert "Amplification by sampling claimed" in shown
    assert "by decile of public activity" in shown
    assert "--set dp.noise_multiplier=" in fedsim("calibrate", "x.toml", "--epsilon", "4").stdout
    refused = fedsim("calibrate", "x.toml", "--epsilon", "0", check=False)
    assert refused.returncode == 2
    assert "cannot be reached" in refused.stderr


def test_the_statement_says_what_a_reviewer_asks(fedsim: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        "[data]\ndevices = 30\nexamples = 300\n"
        '[dp]\nunit = "device"\ndelta = 0.2\ntrust = "secure_sum"\n'
        '[train]\nrounds = 2\n[selection]\ncohort = 9\n[aggregation]\nrule = "fedavg"\n'
    )
    fedsim("run", "x.toml")
    text = next(tmp_path.glob("runs/**/privacy.md")).read_text()
    wanted = (
        "unit of privacy | one device;zero_out;SIMULATED;not claimed;**Warning:**;"
        "set by name;rounds.jsonl;"
    )
    wanted += "Exact losses;vocabulary;for simulation;noise multiplier 1;decile"
    for part in wanted.split(";"):
        assert part in text, part
