"""`fedsim calibrate`: finds the setting that makes a guarantee an epsilon."""

from typing import Annotated

import typer

from fedsim.app.cli.options import DataDir, Experiment, Settings, out, resolve


def calibrate(
    experiment: Experiment,
    epsilon: Annotated[float, typer.Option(help="Epsilon that the run may cost at most.")],
    what: Annotated[
        str, typer.Option("--for", help="What to choose: noise | cap | rounds.")
    ] = "noise",
    settings: Settings = None,
    data_dir: DataDir = None,
) -> None:
    """Find the noise, the cap on inclusion or the rounds with which a run's guarantee is an
    epsilon.
    """
    config = resolve(experiment, settings, data_dir=data_dir)
    from fedsim.app.server.calibration import calibrated

    out.print(*calibrated(config, epsilon, what), sep="\n", soft_wrap=True)
