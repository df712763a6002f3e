"""Examples per device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config import Data
from fedsim.data.activity import gini, make_activity, public_activity
from fedsim.errors import WrongInput


@given(
    devices=st.integers(1, 300),
    extra=st.integers(0, 2000),
    law=st.sampled_from(["zipf", "lognormal", "equal"]),
    shape=st.floats(0.1, 3.0),
)
def test_sizes_sum_to_the_examples_and_nobody_is_empty(
    devices: int, extra: int, law: str, shape: float
) -> None:
    data = Data(devices=devices, examples=devices + extra, activity=law, activity_shape=shape)
    sizes = make_activity(data)
    assert len(sizes) == devices
    assert sizes.sum() == devices + extra
    assert sizes.min() >= 1


def test_zipf_is_heavy_tailed_and_equal_is_not() -> None:
    assert gini(make_activity(Data(activity="zipf"))) > 0.6
    assert gini(make_activity(Data(activity="equal"))) < 0.01


def test_a_seed_repeats_the_federation_and_another_one_does_not() -> None:
    one, same, other = (make_activity(Data(seed=s)) for s in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_more_devices_than_examples_is_refused() -> None:
    with pytest.raises(WrongInput, match=r"raise data\.examples or lower data\.devices"):
        make_activity(Data(devices=10, examples=9))


def test_gini_by_hand() -> None:
    assert gini(np.array([5, 5, 5])) == 0.0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)


def test_public_activity_rounds_down_to_powers_of_two() -> None:
    exact = np.array([0, 1, 2, 3, 4, 7, 8, 1000])
    assert public_activity(exact, "power2").tolist() == [0, 1, 2, 2, 4, 4, 8, 512]
    assert public_activity(exact, "exact").tolist() == exact.tolist()
