"""The command line: `fedsim run | show | calibrate | data | sweep | report | runs | ...`; --help has all."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# Waiting threads spin only a little before they sleep: as fast where nothing else runs, several times faster
# where something does. It must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import typer
from rich.table import Table
from rich.text import Text

from fedsim.app.allocator import keep_freed_memory
from fedsim.app.config_command import config
from fedsim.app.deploy import deploy
from fedsim.app.doctor import doctor
from fedsim.app.options import DataDir, Experiment, Out, Settings, err, out, resolve
from fedsim.app.report_command import report
from fedsim.app.sweep_command import sweep
from fedsim.app.watch import Watcher
from fedsim.config import Config
from fedsim.errors import RunFailed, WrongInput

if TYPE_CHECKING:  # torch is imported only by the commands that need it
    from fedsim.app.rundir import RunDir

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print local variables: people's data
    rich_markup_mode="rich",
    help="Find out, before you ship, what a federated model learns and what it leaks.\n\n"
    "Start with [bold]fedsim run experiments/quickstart.toml[/bold]; look first with "
    "[bold]fedsim show[/bold]; change any setting with [bold]--set section.key=value[/bold].",
)
cli.add_typer(deploy, name="deploy")


@cli.command()
def run(
    experiment: Experiment,
    settings: Settings = None,
    backend: Annotated[
        str, typer.Option(help="Where the nodes are: local (this process) | ray | superlink.")
    ] = "local",
    nodes: Annotated[int, typer.Option(min=0, max=1024, help="Nodes of local and ray; 0 = 1.")] = 0,
    cpus: Annotated[int, typer.Option("--node-cpus", min=1, help="CPU cores a node (ray).")] = 1,
    gpus: Annotated[float, typer.Option("--node-gpus", min=0, help="GPUs a node, also parts (ray).")] = 0.0,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="The SuperLink's (superlink).")] = "",
    root_certificates: Annotated[Path | None, typer.Option(help="The SuperLink's CA, a PEM file.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="A SuperLink without TLS.")] = False,
    data_dir: DataDir = None,
    device: Annotated[str | None, typer.Option(help="auto | cpu | cuda")] = None,
    out_dir: Out = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, nothing else.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; an earlier run is kept aside.")] = False,
    with_report: Annotated[bool, typer.Option("--report", help="Also write RUN/report.html.")] = False,
) -> None:
    """Train an experiment; repeated, resume an unfinished run or say that it is done."""
    config = resolve(experiment, settings, data_dir=data_dir, device=device, out=out_dir)
    from fedsim.app.backends import Backend, run_on
    from fedsim.app.rundir import RunDir

    where = Backend(backend, nodes, cpus, gpus, address, root_certificates, insecure)

    before = RunDir.of(config)
    done = before.summary is not None and not fresh
    with Watcher(config, quiet=as_json or done) as watch:
        finished = run_on(where, config, fresh, watch)
    summary = finished.summary
    assert summary is not None
    page = _report(finished) if with_report else None
    if as_json:
        print(json.dumps(summary))
        return
    if done:
        out.print("This run was done already; --fresh starts it over.")
    out.print(summary_table(summary))
    out.print(f"Results: {finished.path}", soft_wrap=True)
    hint = f"Report: {page}" if page else f"Look at them: fedsim report '{finished.path}'"
    out.print(hint, soft_wrap=True)


@cli.command()
def show(experiment: Experiment, settings: Settings = None, data_dir: DataDir = None) -> None:
    """Print the resolved config, the federation's statistics and what a run will do; train nothing."""
    config = resolve(experiment, settings, data_dir=data_dir)
    from fedsim.app.describe import describe

    describe(config, out)


@cli.command()
def calibrate(
    experiment: Experiment,
    epsilon: Annotated[float, typer.Option(help="Epsilon that the run may cost at most.")],
    what: Annotated[str, typer.Option("--for", help="What to choose: noise | cap | rounds.")] = "noise",
    settings: Settings = None,
    data_dir: DataDir = None,
) -> None:
    """Find the noise, the cap on inclusion or the rounds with which a run's guarantee is an epsilon."""
    config = resolve(experiment, settings, data_dir=data_dir)
    from fedsim.app.plan import calibrated

    out.print(*calibrated(config, epsilon, what), sep="\n", soft_wrap=True)


@cli.command()
def data(
    experiment: Experiment,
    settings: Settings = None,
    data_dir: DataDir = None,
    to: Annotated[Path | None, typer.Option(help="Target folder (default: reports/NAME).")] = None,
) -> None:
    """Write a page of figures about the federation: activity, labels, arrivals, availability."""
    config = resolve(experiment, settings, data_dir=data_dir)
    from fedsim.app.datapage import write_data_page
    from fedsim.app.place import data_dir as find_data_dir

    folder = find_data_dir(config.place, {})
    print(write_data_page(config, folder, experiment, to or Path("reports") / config.name))


@cli.command()
def runs(out_dir: Out = None) -> None:
    """List the runs that there are, with their state."""
    from fedsim.app.rundir import find_runs

    folder = Path(out_dir or Config().place.out)
    table = Table("run", "state", "rounds", "metrics")
    for found in find_runs(folder):
        table.add_row(str(found.path.relative_to(folder)), *_state(found))
    out.print(table if table.row_count else f"No run below {str(folder)!r} yet.")


@cli.command()
def export(
    run_path: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    to: Annotated[Path | None, typer.Option(help="Target folder (default: RUN/model).")] = None,
) -> None:
    """Write the trained model as model.npz and model.json (no pickle)."""
    from fedsim.app.export import export_model
    from fedsim.app.rundir import open_run

    found = open_run(run_path)
    print(export_model(found, to or found.path / "model"))


@cli.command()
def audit(
    run_path: Annotated[
        Path | None, typer.Argument(help="A finished run's folder.", metavar="RUN", show_default=False)
    ] = None,
    sanity: Annotated[bool, typer.Option("--sanity", help="Try attacks and bounds on known cases.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="--sanity: another seed, other draws.")] = 0,
    evaluators: Annotated[str, typer.Option(help="membership, canary, bounds (commas between).")] = "",
    attack: Annotated[str, typer.Option(help="Membership attacks, as loss,lira; else the run's.")] = "",
    references: Annotated[int, typer.Option(min=-1, help="Shadow models; -1 = as the run says.")] = -1,
    settings: Settings = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, nothing else.")] = False,
) -> None:
    """Attack a finished run: RUN. Or try the attacks and audits on cases with a known answer: --sanity."""
    if sanity == (run_path is not None):
        raise WrongInput("fedsim audit wants either a finished RUN, or --sanity, which needs none")
    if run_path is None:
        _sanity(seed)
        return
    changes = {
        "audit.evaluators": evaluators,
        "audit.attacks": attack,
        "audit.references": references if references >= 0 else "",
        "place.data_dir": data_dir or "",
    }
    from fedsim.app.finished import audit_finished

    rows = audit_finished(run_path, {k: v for k, v in changes.items() if v != ""}, settings or [])
    if as_json:
        print(json.dumps(rows))
        return
    from fedsim.app.findings import findings

    for table in findings(rows):
        out.print(table)


def _sanity(seed: int) -> None:
    from fedsim.audit.sanity import sanity as battery

    rows = battery(seed)
    table = Table("", "check", "expected", "observed")
    for row in rows:
        mark = Text("ok", "green") if row.ok else Text("RED", "bold red")
        table.add_row(mark, row.name, row.expected, row.observed)
    red = sum(not row.ok for row in rows)
    out.print(table)
    out.print(f"{red} of {len(rows)} are red")
    if red:
        raise RunFailed(f"the sanity battery has {red} red row(s)")


for command in (sweep, report, config, doctor):
    cli.command()(command)


def _state(found: "RunDir") -> tuple[str, str, str]:
    """Return a run's state, its rounds and its metrics; a config of another version is no reason to stop."""
    try:
        rounds = str(found.config.train.rounds)
    except WrongInput as error:
        return f"its config cannot be read: {error}", "", ""
    summary = found.summary
    state = summary["status"] if summary else "unfinished: run it again to go on"
    metrics = {k: v for k, v in (summary["metrics"] if summary else {}).items() if "_decile_" not in k}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    return state, f"{len(found.rows())}/{rounds}", shown


def _report(found: "RunDir") -> Path:
    from fedsim.app.report import write_report  # matplotlib and templates only where a page is wanted

    return write_report(found)


def summary_table(summary: dict[str, Any]) -> Table:
    """The summary for people."""
    table = Table(
        title=f"{summary['name']}, seed {summary['seed']}: {summary['status']}", title_justify="left"
    )
    table.add_column("")
    table.add_column("federated", justify="right")
    reference = summary["reference"].get("centralised", {})
    if reference:
        table.add_column("centralised", justify="right")
    shown = {name: value for name, value in summary["metrics"].items() if "_decile_" not in name}
    for name, value in shown.items():
        table.add_row(name, f"{value:.4f}", *([f"{reference[name]:.4f}"] if name in reference else []))
    table.add_row("rounds", str(summary["rounds"]))
    table.add_row("devices with examples", f"{summary['devices']} of {summary['devices_all']}")
    privacy = summary["privacy"]
    if privacy:
        spent = f"{privacy['epsilon_max']:.3f} (at most {privacy['epsilon_guarantee']:.3f})"
        table.add_row(f"epsilon of one {privacy['unit']}, delta {privacy['delta']:g}", spent)
    table.add_row("training time", f"{summary['time']['train_s']:.1f} s")
    table.add_row("devices a second", f"{summary['time']['devices_per_s']:.0f}")
    if summary["test_labels_unseen"]:
        table.add_row("test labels unseen in training", str(summary["test_labels_unseen"]))
    notes = [summary[name] for name in ("stopped_early", "privacy_warning") if name in summary]
    table.caption = "; ".join(notes) or None
    return table


def main() -> None:
    """Run the command line: exit code 0 done, 2 wrong input, 1 anything else."""
    sys.path.insert(0, os.getcwd())  # own code by "package.module:function" is sought where one stands
    keep_freed_memory()
    try:
        cli()
    except WrongInput as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
    except RunFailed as error:
        err.print(Text.assemble(("failed: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
