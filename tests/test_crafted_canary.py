"""The run's own DP code under audit: the right build keeps its epsilon, broken ones are caught.

The set-up's power: with 400 releases in each world the bound of a build without noise is the
ceiling, 3.7, far above the epsilon of 1 that is claimed; each broken build here separates the
worlds almost surely.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clients import dp_sgd as private_steps
from clients.example_clip import Clip
from fedsim.app.audits.bounds.crafted_canary import AuditedCode, audit_devices, audit_examples
from fedsim.config import from_flat
from fedsim.models import build_model, parameters_of
from fedsim.models.tasks import make_task
from fedsim.privacy import noise as noise_module
from fedsim.types import Examples, Spec
from strategies.noised_sum import Private

RUNS = 400
DELTA = 1e-5
SPEC = Spec("classification", vocabulary=30, labels=("a", "b", "c"), length=6)
Patch = Callable[[pytest.MonkeyPatch], None]


def audited_code(unit: str, trust: str, method: str = "exact") -> AuditedCode:
    settings = from_flat(
        {
            "model.embedding": 4,
            "train.lr": 1.0,
            "train.local_steps": 1,
            "train.batch_size": 4,
            "selection.cohort": 4,
            "aggregation.lr": 1.0,
            "aggregation.weights": "equal",
            "dp.unit": unit,
            "dp.trust": trust,
            "dp.method": method,
            "dp.clip_norm": 0.05,
            "dp.noise_multiplier": 3.73,  # epsilon 1.0 at delta 1e-5 for one release
        }
    )
    module = build_model(SPEC, settings.model, 1)
    return AuditedCode(settings, module, make_task(SPEC), parameters_of(module), DELTA, RUNS)


def records() -> Examples:
    tokens = torch.tensor([[2, 3, 4], [5, 6, 7], [2, 5, 8], [20, 21, 22]])
    return Examples({"tokens": tokens, "label": torch.tensor([0, 1, 1, 2])})


@pytest.mark.parametrize("method", ["exact", "edp"])
def test_the_right_build_of_example_level_dp_keeps_its_epsilon(method: str) -> None:
    found = audit_examples(audited_code("example", "local", method), records())
    assert found.epsilon == pytest.approx(1.0, abs=0.02)
    assert found.bound.epsilon_low <= found.epsilon
    assert found.bound.ceiling > 3.6


def test_the_right_build_of_device_level_dp_keeps_its_epsilon() -> None:
    found = audit_devices(audited_code("device", "central"))
    assert found.epsilon == pytest.approx(1.0, abs=0.02)
    assert found.bound.epsilon_low <= found.epsilon


def no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noise_module.NoiseSource, "normals", lambda self, out, names: out.zero_())


def no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(private_steps, "clip_of", lambda dp: Clip(1e6))


def noise_on_one_part(patch: pytest.MonkeyPatch) -> None:
    right = private_steps.PrivateGradients._noise

    def partial(self, params, chunk, names, step):  # type: ignore[no-untyped-def]
        found = right(self, params, chunk, names, step)
        return {name: value for i, (name, value) in enumerate(found.items()) if i == 0}

    patch.setattr(private_steps.PrivateGradients, "_noise", partial)


@pytest.mark.parametrize("sabotage", [no_noise, no_clip, noise_on_one_part])
def test_a_broken_build_of_example_level_dp_is_caught(
    sabotage: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch)
    found = audit_examples(audited_code("example", "local"), records())
    assert found.bound.epsilon_low > 2 * found.epsilon


def test_a_broken_build_of_device_level_dp_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Private, total, clip: float, round: int, own) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        return dict(total.delta)

    monkeypatch.setattr(Private, "_noised", silent)
    found = audit_devices(audited_code("device", "central"))
    assert found.bound.epsilon_low == pytest.approx(found.bound.ceiling)
    assert found.bound.epsilon_low > 2 * found.epsilon
