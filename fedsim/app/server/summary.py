"""The summary of a finished run."""

from collections.abc import Mapping
from typing import Any

from fedsim.app.budget.delta import delta_of
from fedsim.app.rundir.audit_file import attacks
from fedsim.app.rundir.metrics import last_metrics, mean_flips, period_matrix, transfer
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
    rows = server.run.rows()
    rounds = server.run.rounds()
    matrix = period_matrix(server.run.rows("periods.jsonl"), server.task.metric)
    train_s = sum(done.time_train_s for done in rounds)
    summary: dict[str, Any] = {
        "schema": config.schema_,
        "name": config.name,
        "status": "completed",
        "config_hash": config.hash,
        "seed": config.seed,
        "rounds": len(rows),
        "devices": int((server.holdings.sizes > 0).sum()),
        "devices_all": len(federation.devices),
        "devices_empty": int((server.holdings.sizes == 0).sum()),
        "examples": int(server.holdings.sizes.sum()),
        "test_labels_unseen": count_unseen_labels(federation),
        "metrics": last_metrics(rows)
        | transfer(matrix, server.task.metric)
        | mean_flips(server.run.rows("releases.jsonl")),
        "reference": {"centralised": reference} if reference else {},
        "time": {
            "setup_s": setup_s,
            "train_s": train_s,
            "devices_per_s": sum(done.devices for done in rounds) / train_s if train_s else 0.0,
        },
        "privacy": dict(privacy),
        "attacks": attacks(server.run),
    }
    if privacy and (warning := delta_of(config, federation).warning):
        summary["privacy_warning"] = warning
    if why:
        summary["stopped_early"] = why
    return summary
