"""The inclusion probability that a target leaves room for, and the selection that keeps to it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from factory import configured
from test_rounds import config as run_config

from fedsim.app.engines.local import run_local
from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.privacy.accounting import epsilon
from fedsim.privacy.claims import target_delta
from fedsim.privacy.inclusion_cap import inclusion_within_target, privacy_cap
from fedsim.privacy.mechanism import device_mechanism
from fedsim.privacy.planning import guaranteed
from strategies.federated import Federated
from strategies.roster import Roster

PRIVATE = {
    "selection.rule": "privacy_aware",
    "selection.cohort": 20,
    "dp.unit": "device",
    "dp.noise_multiplier": 1.0,
    "dp.target_epsilon": 2.0,
    "train.rounds": 50,
    "aggregation.weights": "equal",
}


def config(**changes: object) -> Config:
    return configured(PRIVATE, **changes)


def spent(settings: Config, chance: float, devices: int) -> float:
    event = device_mechanism(settings).event(chance, 1.0, settings.train.rounds)
    return epsilon([event], target_delta(settings, devices)[0])


def test_a_device_at_the_cap_stays_within_the_target_and_a_little_above_does_not() -> None:
    settings = config()
    cap = inclusion_within_target(settings, 1000)
    assert 0.001 < cap < 0.5
    assert 1.5 < spent(settings, cap, 1000) <= 2.0
    assert spent(settings, 1.4 * cap, 1000) > 2.0


def test_the_cap_grows_with_noise_and_falls_with_rounds() -> None:
    usual = inclusion_within_target(config(), 1000)
    assert inclusion_within_target(config(dp__noise_multiplier=2.0), 1000) > usual
    assert inclusion_within_target(config(train__rounds=200), 1000) < usual
    assert inclusion_within_target(config(dp__noise_multiplier=500.0), 1000) == 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dp__target_epsilon": 0.0}, 'set dp.unit = "device" and dp.target_epsilon'),
        ({"dp__unit": "none"}, 'set dp.unit = "device" and dp.target_epsilon'),
        ({"aggregation__min_updates": 2}, "cannot be claimed: aggregation.min_updates"),
        ({"selection__sampling": "fixed"}, "cannot be claimed: a cohort of fixed size"),
        ({"dp__noise_multiplier": 0.01}, "leaves no room"),
    ],
)
def test_what_no_cap_can_give_is_refused_in_a_sentence(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(WrongInput, match=sentence):
        inclusion_within_target(config(**changes), 1000)


def test_only_the_privacy_aware_rule_has_a_cap() -> None:
    assert privacy_cap(config(selection__rule="activity"), 1000) is None


def test_no_device_s_planned_epsilon_passes_the_target() -> None:
    settings = config()
    devices = np.array([f"d{i:03d}" for i in range(200)])
    activity = np.arange(1, 201) ** 2
    strategy = Federated(
        settings, Roster(devices, activity, np.ones(200, np.uint64)), {"w": torch.zeros(1)}
    )
    stated: dict[str, float] = {}
    for round in range(1, 400):
        cohort = strategy.select(round)
        assert cohort.probabilities is not None
        stated |= dict(zip(cohort.devices.tolist(), cohort.probabilities.tolist(), strict=True))
    largest = max(stated.values())
    assert largest == strategy.privacy_cap
    assert spent(settings, largest, 200) <= 2.0
    free = min(20 * activity[100] / activity.sum(), largest)  # nobody gets what the cap cuts off
    assert stated["d100"] == pytest.approx(free)


def test_a_run_keeps_to_it(tmp_path: Path) -> None:
    named = {
        key.replace(".", "__"): value for key, value in PRIVATE.items() if key != "train.rounds"
    }
    run = run_local(run_config(tmp_path, **named | {"dp__noise_multiplier": 20.0}))
    assert len(run.rows()) == 5


def test_the_guarantee_knows_the_cap_that_the_rule_keeps_to() -> None:
    settings = config()
    activity = np.full(1000, 8)
    guarantee, why = guaranteed(settings, target_delta(settings, 1000)[0], activity)
    assert guarantee == spent(settings, inclusion_within_target(settings, 1000), 1000) <= 2.0
    assert "leaves room for" in why
    moving = config(stream__mode="continual", stream__periods=2, stream__arrivals="poisson")
    assert "selection.cap" in guaranteed(moving, 1e-4, activity)[1], (
        "other periods have other devices"
    )
