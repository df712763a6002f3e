"""The summary of a finished run."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.app.budget.delta import delta_of
from fedsim.app.rundir.audit_file import attacks
from fedsim.app.rundir.metrics import last_metrics, mean_flips, period_matrix, transfer
from fedsim.app.rundir.round_record import Round
from fedsim.app.server.session import Server
from fedsim.data.federation import count_unseen_labels


def summarise(
    server: Server,
    reference: dict[str, float],
    setup_s: float,
    why: str,
    privacy: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of `summary.json`, with the metrics of the last evaluated round.

    `why` is the reason of an early end.
    """
    config = server.config
    federation = server.federation
    summary: dict[str, Any] = {
        "schema": config.schema_,
        "name": config.name,
        "status": "completed",
        "config_hash": config.hash,
        "seed": config.seed,
        "rounds": len(server.run.rows()),
        "devices": int((server.holdings.sizes > 0).sum()),
        "devices_all": len(federation.devices),
        "devices_empty": int((server.holdings.sizes == 0).sum()),
        "examples": int(server.holdings.sizes.sum()),
        "test_labels_unseen": count_unseen_labels(federation),
        "metrics": metrics_of(server),
        "reference": {"centralised": reference} if reference else {},
        "time": {"setup_s": setup_s} | training_time(server.run.rounds()),
        "privacy": dict(privacy),
        "attacks": attacks(server.run),
    }
    if privacy and (warning := delta_of(config, federation).warning):
        summary["privacy_warning"] = warning
    if why:
        summary["stopped_early"] = why
    return summary


def metrics_of(server: Server) -> dict[str, float]:
    """Return the last metrics, and what periods and releases tell of forgetting and flips."""
    run = server.run
    matrix = period_matrix(run.rows("periods.jsonl"), server.task.metric)
    over_periods = transfer(matrix, server.task.metric)
    return last_metrics(run.rows()) | over_periods | mean_flips(run.rows("releases.jsonl"))


def training_time(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the seconds of all rounds' training, and the devices a second."""
    seconds = sum(done.time_train_s for done in rounds)
    devices = sum(done.devices for done in rounds)
    return {"train_s": seconds, "devices_per_s": devices / seconds if seconds else 0.0}
