"""Audits of a finished run: `fedsim audit RUN`."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from fedsim.app.audits.audited import Another, Audited
from fedsim.app.audits.schedule import findings_after
from fedsim.app.budget.spending import worst_events
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.place import data_dir, threads
from fedsim.app.rundir.audit_file import replace_findings
from fedsim.app.rundir.run_dir import RunDir, open_run
from fedsim.app.server.check_experiment import check_config, check_experiment
from fedsim.audit.findings import Finding
from fedsim.config import Config, Scalar, from_flat, parse_setting, to_flat
from fedsim.errors import WrongInput
from fedsim.privacy.ledger import Ledger

FIXED = ("audit.coins", "audit.seed", "audit.shadow", "audit.mislabelled", "audit.canary_devices")


def audit_finished(
    path: Path, changes: Mapping[str, Scalar], another: Another, settings: Iterable[str] = ()
) -> list[Finding]:
    """Audit a finished run with other `[audit]` or `[place]` settings; store the findings.

    They replace findings of the same threat model in `audit.jsonl` and in the summary. Training
    stays as it was: coins, canaries and random labels cannot change any more. Raises WrongInput.
    """
    run = open_run(path)
    summary = run.summary
    if summary is None:
        raise WrongInput(
            f"{str(run.path)!r} is not finished; run its experiment again to go on, then audit it"
        )
    wanted = dict(changes)
    wanted.update(parse_setting(setting) for setting in settings)
    config = _changed(run.config, wanted)
    check_config(config)
    with run.locked():
        found = findings_after(
            _audited(run, config, float(summary["privacy"].get("delta", 0.0)), another)
        )
        replace_findings(run, found)
    return found


def _changed(config: Config, changes: Mapping[str, Scalar]) -> Config:
    """Return the config with other settings of the audit.

    Raises WrongInput for settings that concern training.
    """
    for key in changes:
        if key in FIXED or not key.startswith(("audit.", "place.")):
            raise WrongInput(
                f"{key} was settled when the run was trained; change other audit keys only"
            )
    if not (changes.get("audit.evaluators") or config.audit.evaluators):
        changes = {**changes, "audit.evaluators": "membership"}
    return from_flat({**to_flat(config), **changes})


def _audited(run: RunDir, config: Config, delta: float, another: Another) -> Audited:
    torch.set_num_threads(threads(config.place))
    holdings = load_holdings(config, data_dir(config.place, {}))
    found = check_experiment(config, holdings)
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        raise WrongInput(
            f"{str(run.path)!r} has no checkpoint left, so that there is no model to attack"
        )
    devices = len(holdings.dataset.devices)
    events = worst_events(Ledger.open(run.path, devices), delta) if delta else ()
    return Audited(
        config,
        holdings,
        found.module,
        found.task,
        run,
        checkpoint.round,
        checkpoint.params,
        another,
        ended=True,
        events=events,
        delta=delta,
    )
