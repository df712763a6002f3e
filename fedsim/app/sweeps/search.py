"""A search instead of a grid: Optuna raises utility and lowers epsilon and attack AUC."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fedsim.app.rundir.files import make_folder
from fedsim.app.sweeps.execute import do_runs
from fedsim.app.sweeps.grid import (
    EPSILON,
    Member,
    Settings,
    Sweep,
    distinct,
    member_config,
    with_seed,
)
from fedsim.app.sweeps.pareto import first_metric, pareto_table
from fedsim.app.sweeps.sweep_dir import SweepDir
from fedsim.config import Config, Scalar, known_keys
from fedsim.errors import WrongInput
from fedsim.names import suggestion

if TYPE_CHECKING:
    import optuna

DIRECTIONS = {"utility": "maximize", "epsilon": "minimize", "attack_auc": "minimize"}
KEYS = ("trials", "objectives", "space")
Calibrate = Callable[[Config, float], Config]


@dataclass
class SweepSearch:
    """A running study. Its journal is in the sweep's folder, so a killed study can resume."""

    sweep: Sweep
    folder: SweepDir
    place: Settings
    calibrate: Calibrate
    study: "optuna.Study"
    runs: list[Member] = field(default_factory=list)

    @property
    def objectives(self) -> list[str]:
        return objectives_of(self.sweep)

    def members(self, params: Mapping[str, Scalar]) -> list[Member]:
        """Return the runs of a trial, one for each seed."""
        config = member_config(self.sweep, dict(params), self.place, self.calibrate)
        where = {
            key: f"{value:.4g}" if isinstance(value, float) else str(value)
            for key, value in params.items()
        }
        return [Member(where, with_seed(config, seed)) for seed in self.sweep.seeds]

    def values(self, runs: list[Member]) -> list[float] | None:
        """Return the objectives of a trial whose runs ended; None if one is missing."""
        frame = self.folder.frame()
        mine = frame[frame["hash"] == runs[0].config.hash]
        if (mine["status"] == "completed").sum() < len(runs):
            return None
        row = pareto_table(mine, self.folder.axes, self.sweep.metric or first_metric(mine)).iloc[0]
        found = [float(row[name]) for name in self.objectives]
        return found if all(abs(value) < float("inf") for value in found) else None


def check_search(sweep: Sweep) -> None:
    """Refuse a sweep that cannot be searched. Raises WrongInput."""
    search = sweep.search
    unknown = [key for key in search if key not in KEYS]
    if unknown:
        raise WrongInput(f"[search]: unknown key {unknown[0]!r}{suggestion(unknown[0], KEYS)}")
    if sweep.axes:
        raise WrongInput(
            "a sweep has a [grid] or a [search], not both; put the grid into a sweep of its own"
        )
    if type(search.get("trials")) is not int or search["trials"] < 1:
        raise WrongInput("[search] wants trials = N, a whole number of settings to try")
    strange = [name for name in objectives_of(sweep) if name not in DIRECTIONS]
    if strange:
        raise WrongInput(
            f"[search]: the objective {strange[0]!r} is not known; choose {', '.join(DIRECTIONS)}"
        )
    if not search.get("space"):
        raise WrongInput("[search] wants a [search.space] with at least one setting")
    for key in flat_space(search["space"]):
        if key not in (EPSILON, *known_keys()):
            raise WrongInput(
                f"unknown config key {key!r}{suggestion(key, [EPSILON, *known_keys()])}"
            )


def objectives_of(sweep: Sweep) -> list[str]:
    """Return the names of a trial's objectives."""
    return list(sweep.search.get("objectives", ["utility", "epsilon"]))


def open_search(
    sweep: Sweep, folder: SweepDir, place: Settings, calibrate: Calibrate
) -> SweepSearch:
    """Return the search as its journal records it. Raises WrongInput without Optuna."""
    check_search(sweep)
    try:
        import optuna
    except ImportError:
        raise WrongInput("[search] needs Optuna: pip install 'fedsim-privacy[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = [DIRECTIONS[name] for name in objectives_of(sweep)]
    study = optuna.create_study(
        storage=_storage(folder.path),
        directions=wanted,
        study_name=sweep.name,
        load_if_exists=True,
    )
    if [d.name.lower() for d in study.directions] != wanted:
        raise WrongInput(
            f"{folder.path} holds a search with other objectives; give the sweep another name"
        )
    study.sampler = optuna.samplers.TPESampler(
        seed=sweep.seeds[0] + len(study.trials)
    )  # a resumed search draws anew
    return SweepSearch(sweep, folder, place, calibrate, study)


def do_search(search: SweepSearch, jobs: int, console: Console) -> list[Member]:
    """Try settings, `jobs` at a time, until there are enough trials; return all runs."""
    _recover(search)
    while (left := search.sweep.search["trials"] - len(_ended(search.study))) > 0:
        trials = [search.study.ask() for _ in range(min(jobs, left))]
        for trial in trials:
            suggest(trial, search.sweep.search["space"])
        _try(search, trials, jobs, console)
    return search.runs


def suggest(trial: "optuna.Trial", space: Mapping[str, Any]) -> None:
    """Let a trial choose a value for each setting.

    A setting offers a list, {from, to[, step]} or {log_from, log_to}.
    """
    for key, given in flat_space(space).items():
        if isinstance(given, list):
            trial.suggest_categorical(key, given)
            continue
        low, high = (given.get(name, given.get(f"log_{name}")) for name in ("from", "to"))
        if low is None or high is None or low > high:
            raise WrongInput(
                f"{key} = {given!r}: give a list, {{from, to}} or {{log_from, log_to}}"
            )
        if isinstance(low, int) and isinstance(high, int):
            trial.suggest_int(key, low, high, step=given.get("step", 1), log="log_from" in given)
        else:
            trial.suggest_float(key, low, high, step=given.get("step"), log="log_from" in given)


def flat_space(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys -> the choices for each."""
    flat: dict[str, Any] = {}
    for key, given in space.items():
        if isinstance(given, Mapping) and not {"from", "log_from"} & given.keys():
            flat |= flat_space(given, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = given
    return flat


def _try(search: SweepSearch, trials: list["optuna.Trial"], jobs: int, console: Console) -> None:
    from optuna.trial import TrialState

    each = [_members(search, trial.params) for trial in trials]
    search.runs = distinct([*search.runs, *(member for runs in each for member in runs)])
    search.folder.write_plan(
        search.sweep.metric, list(flat_space(search.sweep.search["space"])), search.runs
    )
    do_runs(search.folder, search.runs, jobs, console)
    for trial, runs in zip(trials, each, strict=True):
        values = search.values(runs) if runs else None
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        search.study.tell(trial, values, state=state)


def _members(search: SweepSearch, params: Mapping[str, Scalar]) -> list[Member]:
    """Return the runs of a trial; none if its settings conflict."""
    try:
        return search.members(params)
    except WrongInput:
        return []


def _recover(search: SweepSearch) -> None:
    """Take over what an earlier process left: its runs, and its unfinished trials."""
    from optuna.trial import TrialState

    for trial in search.study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING:
            search.study.enqueue_trial(trial.params)
            search.study.tell(trial.number, state=TrialState.PRUNED)
    told = [member for trial in _ended(search.study) for member in _members(search, trial.params)]
    search.runs = distinct(told)


def _ended(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Return the trials that succeeded or failed; trials of a killed process are pruned."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))


def _storage(folder: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    make_folder(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its journal experimental
        return JournalStorage(JournalFileBackend(str(folder / "search.journal")))
