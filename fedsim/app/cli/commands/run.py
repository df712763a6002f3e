"""`fedsim run`: train an experiment."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.app.cli.options import DataDir, Experiment, Out, Settings, out, resolve
from fedsim.app.cli.progress import Watcher
from fedsim.app.cli.tables import summary_table

if TYPE_CHECKING:
    from fedsim.app.rundir.run_dir import RunDir


def run(
    experiment: Experiment,
    settings: Settings = None,
    backend: Annotated[
        str, typer.Option(help="Where the nodes are: local (this process) | ray | superlink.")
    ] = "local",
    nodes: Annotated[int, typer.Option(min=0, max=1024, help="Nodes of local and ray; 0 = 1.")] = 0,
    cpus: Annotated[int, typer.Option("--node-cpus", min=1, help="CPU cores a node (ray).")] = 1,
    gpus: Annotated[
        float, typer.Option("--node-gpus", min=0, help="GPUs a node, also parts (ray).")
    ] = 0.0,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink's (superlink).")
    ] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(help="The SuperLink's CA, a PEM file.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="A SuperLink without TLS.")] = False,
    data_dir: DataDir = None,
    device: Annotated[str | None, typer.Option(help="auto | cpu | cuda")] = None,
    out_dir: Out = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, nothing else.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; an earlier run is kept aside.")
    ] = False,
    with_report: Annotated[
        bool, typer.Option("--report", help="Also write RUN/report.html.")
    ] = False,
) -> None:
    """Train an experiment; repeated, resume an unfinished run or say that it is done."""
    config = resolve(experiment, settings, data_dir=data_dir, device=device, out=out_dir)
    from fedsim.app.engines.flower import Backend, run_on
    from fedsim.app.rundir.run_dir import RunDir

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


def _report(found: "RunDir") -> Path:
    from fedsim.app.report.write import (
        write_report,
    )  # imports matplotlib, only for pages

    return write_report(found)
