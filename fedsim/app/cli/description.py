"""What an experiment is and will do, in tables and sentences, before training begins."""

from rich.console import Console, Group, RenderableType
from rich.table import Table

from fedsim.app.budget.plan import privacy_sentences
from fedsim.app.server.check_experiment import Experiment, checked
from fedsim.config import Config, to_flat
from fedsim.data.federation import FederatedDataset, count_unseen_labels
from fedsim.data.holdings import Holdings
from fedsim.data.statistics import activity_statistics, label_skew
from fedsim.data.stream import rounds_per_period
from fedsim.types import Cohort, View
from strategies.disclosure import disclosure_sentences


def describe(config: Config, console: Console) -> None:
    """Print config, federation and plan. Raises WrongInput for what a run would refuse."""
    found = checked(config)
    plan = plan_sentences(found)
    console.print(config_table(config), federation_table(config, found.holdings.dataset), plan)


def config_table(config: Config) -> Table:
    """The table of all settings; it marks those that differ from the default."""
    table = Table(
        "setting", "value", title="Config (* differs from the default)", title_justify="left"
    )
    default = to_flat(Config())
    for key, value in to_flat(config).items():
        mark = "" if value == default[key] else " *"
        table.add_row(key + mark, str(value) if value != "" else '""')
    return table


def federation_table(config: Config, federation: FederatedDataset) -> Table:
    """The table of sizes, and of how unequal activity and labels are."""
    table = Table("federation", "", title="Federation", title_justify="left")
    for name, value in activity_statistics(federation.activity).items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    spec = federation.spec
    table.add_row("labels / tags", f"{len(spec.labels)} / {len(spec.tags)}")
    if spec.vocabulary:
        table.add_row("token ids", str(spec.vocabulary))
    table.add_row("test / dev examples", f"{_size(federation.test)} / {_size(federation.dev)}")
    table.add_row(
        "test examples with a label unseen in training", str(count_unseen_labels(federation))
    )
    skew = label_skew(federation, config.data.seed)
    if skew is not None:
        where = f"a seeded sample of {skew.devices} devices" if skew.sampled else "all devices"
        table.add_row(
            "label skew (Jensen-Shannon, bits)",
            f"{skew.measured:.3f}, by chance alone {skew.by_chance:.3f} ({where})",
        )
    for note in federation.notes:
        table.add_row("note", note)
    return table


def plan_sentences(found: Experiment) -> RenderableType:
    """Sentences on what a run will do, from the first cohort that the selection draws."""
    config = found.config
    view = found.cohorts.view(1)
    first = found.cohorts.select(1)
    lines = [
        *training_sentences(found, first),
        *disclosure_sentences(config),
        *privacy_sentences(config, found.holdings, view),
        *selection_sentences(config, view, first),
        *stream_sentences(config, found.holdings),
        *availability_sentences(config, view),
    ]
    if config.train.patience:
        lines.append("Early stopping looks at the dev part; that choice is outside any epsilon.")
    return Group("", *lines)


def training_sentences(found: Experiment, first: Cohort) -> list[str]:
    """Sentences on how many devices train, what they train, and how."""
    config = found.config
    train = config.train
    count = sum(p.numel() for p in found.cohorts.state.params.values())
    work = f"{train.local_steps} steps" if train.local_steps else f"{train.local_epochs} epoch(s)"
    return [
        f"{train.rounds} rounds; about {config.selection.cohort} devices each "
        f"({config.selection.rule}, {config.selection.sampling}); the first cohort would have "
        f"{len(first)}.",
        f"Each device trains {work} with batches of {train.batch_size} by {train.optimizer}, lr "
        f"{train.lr}.",
        f"The model {config.model.name!r} has {count:,} parameters ({count * 4 / 1e6:.1f} MB).",
        f"The server aggregates by {config.aggregation.rule} with weights "
        f"{config.aggregation.weights!r}.",
    ]


def selection_sentences(config: Config, view: View, first: Cohort) -> list[str]:
    """Sentences on who is selected, how often, and with which weight."""
    lines = []
    if first.probabilities is not None and len(first):
        sure = int((first.probabilities >= 1.0).sum())
        lines.append(
            f"Inclusion probabilities in that cohort: {first.probabilities.min():.4f} to "
            f"{first.probabilities.max():.4f}; {sure} devices would train in every round."
        )
    weighted = config.aggregation.weights == "examples" or (
        config.aggregation.weights == "auto" and config.dp.unit != "device"
    )
    if config.selection.rule in ("activity", "mixture", "schedule") and weighted:
        lines.append(
            "Note: activity counts twice: active devices are chosen more often and weigh more. "
            'aggregation.weights = "equal" counts it once.'
        )
    if view.privacy_cap is not None:
        lines.append(
            f"No device is included with a chance above {view.privacy_cap:.4g}, which keeps each "
            f"within epsilon {config.dp.target_epsilon:g}; what that cuts off goes to nobody."
        )
    if config.aggregation.weights == "inverse_probability":
        heaviest = first.weights.max(initial=0.0)
        lines.append(
            f"Weights by inverse probability, divided by the constant {config.selection.cohort}: "
            f"the heaviest of the first cohort weighs {heaviest:.2f}, the cap "
            f"{config.aggregation.weight_cap:g}."
        )
    return lines


def availability_sentences(config: Config, view: View) -> list[str]:
    """Sentences on how many devices are reachable in the first round, where that is limited."""
    if config.availability.rule == "always":
        return []
    return [
        f"In reach in round 1 ({config.availability.rule}): {int(view.reachable.sum())} of "
        f"{len(view.devices)} devices; a round takes {config.availability.round_minutes:g} minutes."
    ]


def stream_sentences(config: Config, holdings: Holdings) -> list[str]:
    """Sentences on when examples arrive and what devices keep, for a continual run."""
    if holdings.arrivals is None:
        return []
    rounds = rounds_per_period(config.stream, config.train.rounds)
    periods = range(1, config.stream.periods + 1)
    return [
        f"{config.stream.periods} periods of {rounds} rounds; examples that arrive in each: "
        f"{', '.join(map(str, holdings.arrivals.sizes))}.",
        f"Devices keep by memory = {config.stream.memory!r}; examples held in each period: "
        f"{', '.join(str(int(holdings.activity(p).sum())) for p in periods)}.",
    ]


def _size(examples: object) -> int:
    return 0 if examples is None else len(examples)  # type: ignore[arg-type]
