"""`fedsim audit`: attack a finished run, or try the attacks on known cases."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedsim.app.cli.options import DataDir, Settings, out
from fedsim.audit.findings import to_row
from fedsim.errors import RunFailed, WrongInput


def audit(
    run_path: Annotated[
        Path | None,
        typer.Argument(help="A finished run's folder.", metavar="RUN", show_default=False),
    ] = None,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Try attacks and bounds on known cases.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="--sanity: another seed, other draws.")] = 0,
    evaluators: Annotated[
        str, typer.Option(help="membership, canary, bounds (commas between).")
    ] = "",
    attack: Annotated[
        str, typer.Option(help="Membership attacks, as loss,lira; else the run's.")
    ] = "",
    references: Annotated[
        int, typer.Option(min=-1, help="Shadow models; -1 = as the run says.")
    ] = -1,
    settings: Settings = None,
    data_dir: DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rows as JSON, nothing else.")
    ] = False,
) -> None:
    """Attack a finished run: RUN. Or try the attacks and audits on cases with a known answer:
    --sanity.
    """
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
    from fedsim.app.engines.local import run_local
    from fedsim.app.server.finished_audit import audit_finished

    named = {key: value for key, value in changes.items() if value != ""}
    findings = audit_finished(run_path, named, run_local, settings or [])
    if as_json:
        print(json.dumps([to_row(found) for found in findings]))
        return
    from fedsim.app.cli.tables import tables_of

    for table in tables_of(findings):
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
