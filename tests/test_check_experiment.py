"""What a run refuses, whoever asks.

Seen to fail: `show` without `check_config` accepted audits, trackers and metrics that `run`
refused; a dry run of a sweep accepted everything.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from test_rounds import config

from fedsim.app.cli.description import describe
from fedsim.app.engines.local import run_local
from fedsim.app.server.calibration import calibrated
from fedsim.app.server.check_experiment import checked
from fedsim.app.server.finished_audit import audit_finished
from fedsim.app.sweeps.check import check_runs
from fedsim.app.sweeps.grid import Member
from fedsim.config import Config
from fedsim.errors import WrongInput

DEVICE = {"dp__unit": "device"}
REFUSED = {
    "audit.evaluators names 'nothing'": {"audit__evaluators": "nothing"},
    "references come in pairs": {"audit__evaluators": "membership", "audit__references": 3},
    "audit.view names 'moon'": {"audit__evaluators": "membership", "audit__view": "moon"},
    "canary.count = 0 plants none": {"audit__evaluators": "canary"},
    "place.trackers = 'tensorbord'": {"place__trackers": "tensorbord"},
    "train.patience_metric = 'beauty' is not measured": {
        "train__patience": 2,
        "train__patience_metric": "beauty",
    },
    "needs evaluation.holdout": {"evaluation__on": "devices", "dp__unit": "none"},
    "the module 'a.b' could not be imported": {"selection__rule": "a.b:c"},
    "hides nothing at any epsilon": {"dp__noise_multiplier": 0.0},
    "aggregation.rule = 'median' is no sum": {"aggregation__rule": "median"},
    "periods": {"stream__mode": "continual", "stream__periods": 7, "train__rounds": 3},
    "grad_clip": {"dp__unit": "example", "train__grad_clip": 1.0},
}


def sentence_of(ask: Callable[[], object]) -> str:
    with pytest.raises(WrongInput) as caught:
        ask()
    return str(caught.value)


def show(settings: Config) -> None:
    with Path("/dev/null").open("w") as nowhere:
        describe(settings, Console(file=nowhere))


@pytest.mark.parametrize(("sentence", "changes"), REFUSED.items(), ids=REFUSED)
def test_what_one_command_refuses_all_refuse_in_the_same_words(
    tmp_path: Path, sentence: str, changes: dict[str, object]
) -> None:
    settings = config(tmp_path / "runs", **(DEVICE | changes))
    told = sentence_of(lambda: run_local(settings))
    assert sentence in told
    assert not (tmp_path / "runs").exists()
    assert sentence_of(lambda: checked(settings)) == told
    assert sentence_of(lambda: show(settings)) == told
    assert told in sentence_of(lambda: check_runs([Member({}, settings)]))
    if settings.dp.unit != "none" and settings.dp.noise_multiplier:
        assert sentence_of(lambda: calibrated(settings, 4.0, "noise")) == told


def test_an_audit_of_a_finished_run_is_refused_as_its_run_would_be(tmp_path: Path) -> None:
    done = run_local(config(tmp_path, train__rounds=1))
    changes = {"audit.evaluators": "membership", "audit.references": 3}
    told = sentence_of(lambda: audit_finished(done.path, changes, run_local))
    wanted = config(tmp_path, train__rounds=1, audit__evaluators="membership", audit__references=3)
    assert told == sentence_of(lambda: run_local(wanted))


def test_calibration_finds_noise_for_an_experiment_that_has_none(tmp_path: Path) -> None:
    settings = config(tmp_path, **DEVICE, dp__noise_multiplier=0.0)
    assert calibrated(settings, 4.0, "noise")[0].startswith("dp.noise_multiplier = ")


def test_a_good_experiment_is_built_as_the_run_builds_it(tmp_path: Path) -> None:
    settings = config(tmp_path, **DEVICE)
    found = checked(settings)
    cohort = found.cohorts.select(1)
    assert run_local(settings).rows()[0]["cohort"] == len(cohort)


def test_the_dry_run_of_a_sweep_counts_the_settings_that_would_be_refused(tmp_path: Path) -> None:
    good = config(tmp_path)
    bad = config(tmp_path, audit__evaluators="canary")
    assert check_runs([Member({}, good)]) is None
    assert "1 of 2 settings" in sentence_of(lambda: check_runs([Member({}, good), Member({}, bad)]))
