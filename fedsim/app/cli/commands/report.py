"""`fedsim report`."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.audit.findings import SanityCheck


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A run's folder, several, one with runs below, or a sweep's.", metavar="PATH..."
        ),
    ],
    sanity: Annotated[
        bool,
        typer.Option("--sanity", help="Try attacks and audits on known cases (20 s) and show it."),
    ] = False,
    within: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the best utility that a cheap run may lack."),
    ] = 0.05,
) -> None:
    """Write one self-contained page: RUN/report.html of a run, reports/TIME/report.html of more."""
    from fedsim.app.report.write import (
        report_on,
    )  # imports matplotlib, only for pages

    checks: list[SanityCheck] = []
    if sanity:
        from fedsim.audit.sanity import sanity as battery

        checks = battery()
    print(report_on(paths, within, checks))
