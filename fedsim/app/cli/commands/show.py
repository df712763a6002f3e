"""`fedsim show`: what an experiment is and will do."""

from fedsim.app.cli.options import DataDir, Experiment, Settings, out, resolve


def show(experiment: Experiment, settings: Settings = None, data_dir: DataDir = None) -> None:
    """Print the resolved config, the federation's statistics and what a run will do; train
    nothing.
    """
    config = resolve(experiment, settings, data_dir=data_dir)
    from fedsim.app.cli.description import describe

    describe(config, out)
