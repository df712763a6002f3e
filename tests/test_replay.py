"""Rounds once more: what single devices sent adds up to the step that the run took."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_rounds import config

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.replay import Replay, check_single
from fedsim.app.engines.local import run_local
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import Config, from_flat, to_flat
from fedsim.errors import WrongInput
from fedsim.models import build_model
from fedsim.models.tasks import make_task
from fedsim.types import no_update
from strategies.weights import with_divisor

KEPT = {"place__keep": "all", "train__rounds": 3}


def audited_of(run: RunDir, config: Config | None = None) -> Audited:
    config = config or run.config
    holdings = load_holdings(config, None)
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    spec = holdings.dataset.spec
    module = build_model(spec, config.model, config.seed)
    return Audited(
        config,
        holdings,
        module,
        make_task(spec),
        run,
        checkpoint.round,
        checkpoint.params,
        run_local,
        ended=True,
    )


def largest_gap(run: RunDir, replay: Replay, round: int) -> float:
    """The largest difference of any parameter between the replayed round and the run's next
    checkpoint.
    """
    seen = replay.round(round)
    total = no_update(seen.before)
    weights = dict(zip(seen.cohort.devices, seen.cohort.weights, strict=True))
    for device, change in replay.updates(seen):
        weight = weights[device]
        part = {name: weight * c.double() for name, c in change.items()}
        total = total + replace(no_update(seen.before), delta=part, weight=weight, devices=1)
    strategy = replay.strategy
    params, _ = strategy.aggregator.step(
        seen.before, with_divisor(total, strategy.config), strategy.state.aggregator
    )
    return max(float((params[name] - p).abs().max()) for name, p in seen.after.items())


SETTINGS: dict[str, dict[str, object]] = {
    "plain": {},
    "server_optimiser": {"aggregation__rule": "fedadam", "aggregation__lr": 0.01},
    "dropout_and_drop_outs": {"model__dropout": 0.3, "availability__dropout": 0.3},
    "losses": {"selection__rule": "loss"},
    "bounded": {"aggregation__max_norm": 0.05},
    "device_dp": {"dp__unit": "device", "selection__sampling": "poisson", "dp__clip_norm": 0.1},
    "example_dp": {"dp__unit": "example", "dp__noise_multiplier": 0.5},
    "continual": {"stream__mode": "continual", "stream__periods": 3, "stream__arrivals": "poisson"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_replayed_updates_add_up_to_the_step_of_the_run(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    run = run_local(config(tmp_path, **KEPT | settings))
    replay = Replay(audited_of(run))
    for round in (1, 2, 3):
        assert largest_gap(run, replay, round) < 1e-5


def test_other_audit_settings_replay_the_same_noise(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **KEPT, dp__unit="example"))
    changed = from_flat(to_flat(run.config) | {"audit.view": "updates", "audit.window": 2})
    assert changed.hash != run.config.hash
    assert largest_gap(run, Replay(audited_of(run, changed)), 2) < 1e-5


def test_a_run_without_its_checkpoints_cannot_be_replayed(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, train__rounds=3))
    with pytest.raises(WrongInput, match=r'round 1 is not there.*place.keep = "all"'):
        Replay(audited_of(run)).round(1)


def test_noise_of_the_operating_system_cannot_be_replayed(tmp_path: Path) -> None:
    run = run_local(config(tmp_path, **KEPT, dp__unit="example", dp__noise_source="os"))
    with pytest.raises(WrongInput, match="draws its coins and noise from the operating system"):
        Replay(audited_of(run))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dp__unit": "device", "dp__trust": "secure_sum"}, 'set audit.view = "sums"'),
        ({"dp__unit": "example", "dp__noise_layout": "summed"}, "no single update is defined"),
    ],
)
def test_single_updates_are_refused_where_nobody_sees_them(
    tmp_path: Path, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(WrongInput, match=sentence):
        check_single(config(tmp_path, **settings))


def test_a_device_that_starts_elsewhere_sends_something_else(tmp_path: Path) -> None:
    replay = Replay(audited_of(run_local(config(tmp_path, **KEPT))))
    seen = replay.round(1)
    elsewhere = {name: p + 0.1 for name, p in seen.before.items()}
    device = str(seen.cohort.devices[0])
    one = replay.update(seen, device)
    other = replay.update(seen, device, elsewhere)
    assert one is not None
    assert other is not None
    assert not torch.equal(one["heads.label.bias"], other["heads.label.bias"])
