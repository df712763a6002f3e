"""The command line: `fedsim run | show | calibrate | data | ...`; --help lists all commands."""

import os
import sys
from typing import Annotated

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
# Waiting threads spin only briefly before they sleep. On an idle machine this costs no speed; on a
# busy one it is several times faster. It must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import typer
from rich.text import Text

from fedsim.app.allocator import collect_rarely, keep_freed_memory
from fedsim.app.cli.commands.audit import audit
from fedsim.app.cli.commands.calibrate import calibrate
from fedsim.app.cli.commands.config import config
from fedsim.app.cli.commands.data import data
from fedsim.app.cli.commands.deploy import deploy
from fedsim.app.cli.commands.doctor import doctor
from fedsim.app.cli.commands.export import export
from fedsim.app.cli.commands.report import report
from fedsim.app.cli.commands.run import run
from fedsim.app.cli.commands.runs import runs
from fedsim.app.cli.commands.show import show
from fedsim.app.cli.commands.sweep import sweep
from fedsim.app.cli.options import err
from fedsim.errors import RunFailed, WrongInput
from fedsim.version import __version__

COMMANDS = (run, show, calibrate, data, runs, export, audit, sweep, report, config, doctor)
"""Every command, in the order of --help. Each is a function in the file of its name in `commands/`.
"""

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks print local variables: people's data
    rich_markup_mode="rich",
    help="Find out, before you ship, what a federated model learns and what it leaks.\n\n"
    "Start with [bold]fedsim run experiments/quickstart.toml[/bold]; look first with "
    "[bold]fedsim show[/bold]; change any setting with [bold]--set section.key=value[/bold].",
)
for command in COMMANDS:
    cli.command()(command)
cli.add_typer(deploy, name="deploy")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedsim {__version__}")
        raise typer.Exit()


@cli.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options of `fedsim` itself; commands have their own."""


def main() -> None:
    """Run the command line. Exit codes: 0 for success, 2 for wrong input, 1 for anything else."""
    sys.path.insert(
        0, os.getcwd()
    )  # finds own code, "package.module:function", in the current folder
    keep_freed_memory()
    collect_rarely()
    try:
        cli()
    except WrongInput as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
    except RunFailed as error:
        err.print(Text.assemble(("failed: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(1)
