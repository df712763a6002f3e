"""A running experiment in the terminal: a live table of one line."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from fedsim.app.cli.options import err
from fedsim.app.rundir.metrics import SHOWN
from fedsim.app.rundir.round_record import Round
from fedsim.config import Config

METRICS = (*SHOWN, "perplexity", "loss")


class Watcher:
    """A live table on stderr; its `watch` takes each round's row."""

    def __init__(self, config: Config, quiet: bool, console: Console = err) -> None:
        self.config = config
        self.quiet = quiet
        self.live = Live(console=console, refresh_per_second=4)
        self.metrics: dict[str, float] = {}
        self.began: tuple[float, int] | None = None

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        return self.watch

    def __exit__(self, *_: object) -> None:
        shown = self.live.is_started
        self.live.stop()
        if shown and not self.live.console.is_terminal:
            self.live.console.line()  # rich ends the table's last line on terminals only

    def watch(self, row: dict[str, Any]) -> None:
        """Show a round. The first round opens the table, so wrong input is told without one."""
        if self.quiet:
            return
        now = time.monotonic()
        done = Round.of(row)
        self.began = self.began or (now - done.time_train_s - done.time_evaluate_s, done.round - 1)
        self.metrics = {k: done.metrics[k] for k in METRICS if k in done.metrics} or self.metrics
        self.live.update(self.table(done, now))
        self.live.start()

    def table(self, done: Round, now: float) -> Table:
        """Return the table after a round."""
        rounds = self.config.train.rounds
        table = Table(box=None, pad_edge=False, header_style="dim")
        cells: dict[str, RenderableType] = {
            "round": f"{done.round}/{rounds}",
            "": ProgressBar(rounds, done.round, width=20),
        }
        cells |= {
            name.replace("_", " "): f"{value:.3f}" for name, value in list(self.metrics.items())[:3]
        }
        if done.dp_epsilon_spent_rdp is not None:
            cells["epsilon spent (RDP)"] = f"{done.dp_epsilon_spent_rdp:.3f}"
        cells["devices/s"] = f"{done.time_devices_per_s:.0f}"
        cells["time left"] = self._left(done.round, now)
        for name in cells:
            table.add_column(name, no_wrap=True)
        table.add_row(*cells.values())
        return table

    def _left(self, round: int, now: float) -> str:
        assert self.began is not None
        start, before = self.began
        seconds = (now - start) / (round - before) * (self.config.train.rounds - round)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
