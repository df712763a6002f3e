"""The chapter of a report about one run, made only from the run's files."""

from collections.abc import Callable, Sequence

from fedsim.app.report import attack_sections as attacks
from fedsim.app.report import run_sections as training
from fedsim.app.report.parts import Chapter, PageSection, Tile
from fedsim.app.report.readings import reference_of, utility_of
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import SanityCheck
from fedsim.config import Config
from fedsim.errors import WrongInput

SECTIONS: dict[str, Callable[[RunDir, Sequence[SanityCheck]], PageSection]] = {
    "privacy": training.privacy,
    "utility": training.utility,
    "devices": training.devices,
    "forgetting": training.forgetting,
    "membership": attacks.membership,
    "canaries": attacks.canaries,
    "audits": attacks.audits,
    "sanity": attacks.sanity,
    "rounds": training.rounds,
    "time": training.time,
    "repeat": training.repeat,
}
"""Key -> function of (run, checks of a fresh sanity battery), in the order of the page.

To add a section, write a function and add one entry here. A long one gets its own file.
"""


def run_chapter(run: RunDir, checks: Sequence[SanityCheck]) -> Chapter:
    """Return the chapter of a run, finished or not; `checks` come from a fresh sanity battery.

    Raises WrongInput before its first round.
    """
    if not run.rows() or run.last_checkpoint() is None:
        raise WrongInput(f"{run.path} has no finished round yet; run the experiment first")
    sections = [make(run, checks) for make in SECTIONS.values()]
    title = f"{run.config.name}, seed {run.config.seed}"
    return Chapter(title, in_words(run.config), _tiles(run), sections)


def in_words(config: Config) -> str:
    """Return sentences that describe the run."""
    train = config.train
    selection = config.selection
    data = config.data
    work = f"{train.local_steps} steps" if train.local_steps else f"{train.local_epochs} epoch(s)"
    text = (
        f"{train.rounds} rounds of about {selection.cohort} devices, chosen by {selection.rule} "
        f"({selection.sampling}); the data are {data.path or data.source} ({data.source}), the "
        f"task is {data.task.replace('_', ' ')}. Each device trains {config.model.name} for "
        f"{work} by {train.optimizer}; the server aggregates by {config.aggregation.rule} with "
        f"{config.aggregation.weights} weights."
    )
    if config.stream.mode == "continual":
        text += (
            f" Examples arrive in {config.stream.periods} periods; "
            f"devices keep by {config.stream.memory}."
        )
    return text


def _tiles(run: RunDir) -> list[Tile]:
    tiles = []
    best = utility_of(run.rows())
    if best is not None:
        reference = reference_of(run).get(best[0])
        note = f"centralised {reference:.3f}" if reference is not None else "on the test examples"
        tiles.append(Tile(best[0].replace("_", " "), f"{best[1]:.3f}", note))
    privacy = (run.summary or {}).get("privacy")
    if privacy:
        note = f"one {privacy['unit']}, delta {privacy['delta']:g}"
        tiles.append(Tile("epsilon promised", f"{privacy['epsilon_guarantee']:.2f}", note))
    else:
        tiles.append(
            Tile("epsilon", "∞" if run.config.dp.unit == "none" else "?", "no guarantee yet")
        )
    return tiles + attacks.attack_tiles(run)
