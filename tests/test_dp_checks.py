"""Settings under which a promise would not hold, each refused in one sentence before anything runs.

Seen to fail: every row, before its refusal was there.
"""

import pytest

from fedsim.config import Config, from_flat
from fedsim.errors import WrongInput
from fedsim.privacy.claims import check_dp

SUMS = {
    "dp.unit": "example",
    "dp.trust": "secure_sum",
    "dp.sampling_rate": 0.1,
    "train.local_steps": 1,
}
EXAMPLE = {"dp.unit": "example"}
DEVICE = {"dp.unit": "device"}


def config(*changes: dict[str, object]) -> Config:
    named: dict[str, object] = {"aggregation.rule": "fedavg"}
    for change in changes:
        named |= change
    return from_flat(named)


@pytest.mark.parametrize(
    ("base", "changes", "sentence"),
    [
        (SUMS, {"aggregation.weights": "inverse_probability"}, "weighs every example alike"),
        (SUMS, {"aggregation.weights": "equal"}, "weighs every example alike"),
        (SUMS, {"dp.method": "edp"}, "shares do not hide"),
        (SUMS, {"train.optimizer": "adam"}, "by itself"),
        (SUMS, {"train.weight_decay": 0.1}, "by itself"),
        (SUMS, {"train.proximal": 0.1}, "by itself"),
        (SUMS, {"aggregation.max_norm": 1.0}, "no device's norm"),
        (DEVICE | {"dp.trust": "secure_sum"}, {"aggregation.max_norm": 1.0}, "no device's norm"),
        (EXAMPLE, {"data.activity_public": "exact"}, "power2"),
        (EXAMPLE, {"stream.mode": "continual", "stream.memory": "reservoir"}, "pushes"),
        (DEVICE, {"aggregation.min_updates": 2}, "one device decides"),
        (
            DEVICE,
            {"aggregation.min_updates": 2, "dp.correlation": "banded", "dp.min_separation": 4},
            "one device decides",
        ),
        (DEVICE, {"dp.method": "edp"}, "dp.method = 'edp' belongs"),
        (DEVICE, {"dp.noise_decay": 0.9}, "dp.noise_decay = 0.9 belongs"),
        (DEVICE, {"dp.noise_layout": "summed"}, "dp.noise_layout = 'summed' belongs"),
        (DEVICE, {"dp.sampling_rate": 0.1}, "dp.sampling_rate = 0.1 belongs"),
        (DEVICE, {"dp.micro_batches": 8}, "dp.micro_batches = 8 belongs"),
        (EXAMPLE, {"dp.max_weight": 2.0}, "dp.max_weight = 2.0 belongs"),
        (EXAMPLE, {"dp.quantile": 0.9}, "dp.quantile = 0.9 belongs"),
        (EXAMPLE, {"dp.count_noise": 3.0}, "dp.count_noise = 3.0 belongs"),
        (
            EXAMPLE,
            {"dp.clip_lr": 0.3, "dp.max_weight": 2.0},
            "dp.max_weight = 2.0 and dp.clip_lr = 0.3 belong",
        ),
    ],
)
def test_what_would_break_a_promise_is_refused_by_a_sentence(
    base: dict[str, object], changes: dict[str, object], sentence: str
) -> None:
    check_dp(config(base))
    with pytest.raises(WrongInput, match=sentence) as error:
        check_dp(config(base, changes))
    assert "\n" not in str(error.value)


def test_settings_that_change_nothing_private_are_not_refused() -> None:
    for weights in ("auto", "examples"):
        assert (
            check_dp(config(SUMS, {"aggregation.weights": weights, "train.momentum": 0.9})) is None
        )
    assert (
        check_dp(
            config(
                EXAMPLE, {"aggregation.min_updates": 2, "dp.method": "edp", "dp.micro_batches": 8}
            )
        )
        is None
    )
    assert (
        check_dp(config(EXAMPLE, {"stream.mode": "static", "stream.memory": "reservoir"})) is None
    )
    assert (
        check_dp(config({"data.activity_public": "exact", "dp.quantile": 0.9, "dp.method": "edp"}))
        is None
    )
