"""The local steps of example-level DP. Seen to fail: edp with C, shares that are not divided."""

import math

import pytest

from fedsim.config import Dp, Train
from fedsim.errors import WrongInput
from fedsim.privacy.local_plan import local_plan


def test_a_plan_by_hand() -> None:
    plan = local_plan(
        Dp(unit="example", clip_norm=0.5, noise_multiplier=2.0),
        Train(local_epochs=3, batch_size=10),
        32,
    )
    assert (plan.sampling_rate, plan.steps, plan.epoch_steps) == (10 / 32, 12, 4)
    assert (plan.divisor, plan.sensitivity, plan.stddev(11)) == (10.0, 0.5, 1.0)
    assert plan.multipliers() == {2.0: 12}


def test_micro_batches_have_the_sensitivity_2c_and_their_noise_decays_by_epoch() -> None:
    dp = Dp(unit="example", method="edp", clip_norm=0.5, noise_multiplier=2.0, noise_decay=0.5)
    plan = local_plan(dp, Train(local_epochs=2, batch_size=10), 32)
    assert (plan.sensitivity, plan.divisor) == (1.0, 4.0)
    assert plan.multipliers() == {2.0: 4, 1.0: 4}
    assert (plan.stddev(3), plan.stddev(4)) == (2.0, 1.0)


def test_a_small_device_has_rate_1_and_a_divisor_of_at_least_1() -> None:
    plan = local_plan(Dp(sampling_rate=0.1), Train(local_steps=7), 2)
    assert (plan.sampling_rate, plan.divisor, plan.steps, plan.epoch_steps) == (0.1, 1.0, 7, 10)
    assert local_plan(Dp(), Train(batch_size=10), 3).sampling_rate == 1.0


def test_shares_add_up_to_the_noise_of_the_sum() -> None:
    plan = local_plan(Dp(noise_multiplier=3.0, trust="secure_sum"), Train(), 16, survivors=9)
    assert math.isclose(9 * plan.stddev() ** 2, 3.0**2)


def test_a_device_without_examples_has_no_plan() -> None:
    with pytest.raises(WrongInput, match="at least one example"):
        local_plan(Dp(), Train(), 0)
