"""Cohorts, updates and announcements to and from Flower messages.

The only place that knows the keys of records. Everything travels as arrays and scalars: no pickle.
"""

from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.errors import RunFailed
from fedsim.types import Cohort, Params, Update

WIRE_VERSION = 1


@dataclass(frozen=True)
class Announcement:
    """The devices that a node hosts, and their public activity."""

    devices: NDArray[np.str_]
    activity: NDArray[np.int64]
    real: bool = False
    """Whether the node holds data of its own; then noise is never seeded by itself."""


@dataclass(frozen=True)
class DeviceScores:
    """What devices measured on their held-out examples: one metric, one value a device."""

    devices: NDArray[np.str_]
    metric: str
    values: NDArray[np.float64]


def pack_question(period: int) -> RecordDict:
    """Pack the question for a node's devices and their activity in a period."""
    return RecordDict({"question": ConfigRecord({"wire_version": WIRE_VERSION, "period": period})})


def unpack_question(content: RecordDict) -> int:
    return _integer(_versioned(content, "question"), "period")


def pack_announcement(announcement: Announcement) -> RecordDict:
    names = "\n".join(announcement.devices.tolist())
    config = ConfigRecord({"wire_version": WIRE_VERSION, "devices": names, "real": announcement.real})
    arrays = ArrayRecord({"activity": Array(announcement.activity.astype(np.int64))})
    return RecordDict({"announcement": config, "activity": arrays})


def unpack_announcement(content: RecordDict) -> Announcement:
    config = _versioned(content, "announcement")
    activity = content.array_records["activity"]["activity"].numpy()
    return Announcement(_names(config), activity, bool(config["real"]))


def pack_task(arrays: ArrayRecord, cohort: Cohort) -> RecordDict:
    """Pack the current parameters and a node's part of the cohort."""
    config = ConfigRecord(
        {
            "wire_version": WIRE_VERSION,
            "round": cohort.round,
            "period": cohort.period,
            "devices": "\n".join(cohort.devices.tolist()),
            "weights": cohort.weights.tolist(),
            "clip_norm": cohort.clip_norm,
            "survivors": cohort.survivors,
        }
    )
    return RecordDict({"params": arrays, "cohort": config})


def unpack_task(content: RecordDict) -> tuple[Params, Cohort]:
    config = _versioned(content, "cohort")
    cohort = Cohort(
        round=_integer(config, "round"),
        period=_integer(config, "period"),
        devices=_names(config),
        probabilities=None,  # the server's business; devices are not told
        weights=np.array(config["weights"], dtype=np.float64),
        clip_norm=float(config["clip_norm"]),  # type: ignore[arg-type]
        survivors=_integer(config, "survivors"),
    )
    return unpack_params(content.array_records["params"]), cohort


def pack_update(update: Update, round: int) -> RecordDict:
    config = ConfigRecord({"wire_version": WIRE_VERSION, "round": round})
    metrics = MetricRecord({"weight": update.weight, "devices": update.devices, **update.metrics})
    return RecordDict({"update": config, "delta": pack_params(update.delta), "metrics": metrics})


def unpack_update(content: RecordDict) -> Update:
    _versioned(content, "update")
    metrics = {name: float(value) for name, value in content.metric_records["metrics"].items()}  # type: ignore[arg-type]
    return Update(
        delta=unpack_params(content.array_records["delta"]),
        weight=metrics.pop("weight"),
        devices=int(metrics.pop("devices")),
        metrics=metrics,
    )


def pack_evaluation(arrays: ArrayRecord, period: int) -> RecordDict:
    """Pack a model that devices shall measure on what they hold out in a period."""
    return RecordDict({"params": arrays} | dict(pack_question(period)))


def unpack_evaluation(content: RecordDict) -> tuple[Params, int]:
    return unpack_params(content.array_records["params"]), unpack_question(content)


def pack_scores(scores: DeviceScores) -> RecordDict:
    config = ConfigRecord(
        {
            "wire_version": WIRE_VERSION,
            "devices": "\n".join(scores.devices.tolist()),
            "metric": scores.metric,
        }
    )
    return RecordDict({"scores": config, "values": ArrayRecord({"values": Array(scores.values)})})


def unpack_scores(content: RecordDict) -> DeviceScores:
    config = _versioned(content, "scores")
    metric = config["metric"]
    assert isinstance(metric, str), "the metric's name travels as a string"
    return DeviceScores(_names(config), metric, content.array_records["values"]["values"].numpy())


def pack_params(params: Params) -> ArrayRecord:
    return ArrayRecord({name: Array(p.detach().cpu().numpy()) for name, p in params.items()})


def unpack_params(arrays: ArrayRecord) -> Params:
    return {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}


def _integer(config: ConfigRecord, key: str) -> int:
    value = config[key]
    assert isinstance(value, int), f"{key} travels as a whole number"
    return value


def _names(config: ConfigRecord) -> NDArray[np.str_]:
    names = config["devices"]
    assert isinstance(names, str), "device ids travel as one string"
    return np.array(names.split("\n") if names else [], dtype=np.str_)


def _versioned(content: RecordDict, name: str) -> ConfigRecord:
    config = content.config_records[name]
    version = config.get("wire_version")
    if version != WIRE_VERSION:
        raise RunFailed(
            f"a message has wire version {version!r}, this is {WIRE_VERSION}; "
            "run the same release of fedsim on server and nodes"
        )
    return config
