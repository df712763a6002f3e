"""Cohorts, updates and announcements to and from Flower messages.

The only place that knows the keys of records. Everything travels as arrays and scalars: no pickle.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.errors import RunFailed, WrongInput
from fedsim.types import Announcement, Asked, Cohort, Params, Reply, Update

WIRE_VERSION = 1
EVER = 0
"""Stands in the place of a period: all that devices hold in any period."""
ONLY_SUMS = Asked()
NOT_FINITE = "it holds NaN or infinity"
"""Why an update was left out; if it holds for all updates of a round, training has diverged."""


@dataclass(frozen=True)
class DeviceScores:
    """What devices measured on their held-out examples: one metric, one value a device."""

    devices: NDArray[np.str_]
    metric: str
    values: NDArray[np.float64]


@dataclass(frozen=True)
class DeviceFlips:
    """What devices counted on their held-out examples between two releases."""

    devices: NDArray[np.str_]
    counts: NDArray[np.int64]
    """[devices, 3]: right before and wrong now, wrong before and right now, predictions."""


def pack_question(period: int) -> RecordDict:
    """Pack the question for a node's devices and their activity in a period (or `EVER`)."""
    return RecordDict({"question": ConfigRecord({"wire_version": WIRE_VERSION, "period": period})})


def unpack_question(content: RecordDict) -> int:
    return _integer(_versioned(content, "question"), "period")


def pack_announcement(announcement: Announcement) -> RecordDict:
    names = "\n".join(announcement.devices.tolist())
    config = ConfigRecord(
        {"wire_version": WIRE_VERSION, "devices": names, "real": announcement.real}
    )
    arrays = ArrayRecord({"activity": Array(announcement.activity.astype(np.int64))})
    return RecordDict({"announcement": config, "activity": arrays})


def unpack_announcement(content: RecordDict) -> Announcement:
    config = _versioned(content, "announcement")
    activity = content.array_records["activity"]["activity"].numpy()
    return Announcement(_names(config), activity, bool(config["real"]))


def pack_task(arrays: ArrayRecord, cohort: Cohort, form: Asked = ONLY_SUMS) -> RecordDict:
    """Pack the current parameters, a node's part of the cohort and what it shall answer."""
    config = ConfigRecord(
        {
            "wire_version": WIRE_VERSION,
            "round": cohort.round,
            "period": cohort.period,
            "devices": "\n".join(cohort.devices.tolist()),
            "weights": cohort.weights.tolist(),
            "single": form.single,
            "figures": form.figures,
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
        probabilities=None,  # only the server needs them; devices are not told
        weights=np.array(config["weights"], dtype=np.float64),
        clip_norm=float(config["clip_norm"]),  # type: ignore[arg-type]
        survivors=_integer(config, "survivors"),
    )
    return unpack_params(content.array_records["params"]), cohort


def unpack_asked(content: RecordDict) -> Asked:
    config = _versioned(content, "cohort")
    return Asked(single=bool(config["single"]), figures=bool(config["figures"]))


def pack_reply(reply: Reply) -> RecordDict:
    """Pack a node's answer; it carries its round and the ids of the devices that it covers."""
    update = reply.update
    config = ConfigRecord(
        {
            "wire_version": WIRE_VERSION,
            "round": reply.round,
            "devices": "\n".join(reply.devices.tolist()),
            "single": reply.single,
            "rejected": "\n".join(reply.rejected),
            "reasons": "\n".join(reply.rejected.values()),
        }
    )
    metrics = MetricRecord({"weight": update.weight, "devices": update.devices, **update.metrics})
    figures = ArrayRecord({name: Array(values) for name, values in reply.figures.items()})
    delta = pack_params(update.delta)
    return RecordDict({"update": config, "delta": delta, "metrics": metrics, "figures": figures})


def unpack_reply(content: RecordDict) -> Reply:
    config = _versioned(content, "update")
    metrics = {name: float(value) for name, value in content.metric_records["metrics"].items()}  # type: ignore[arg-type]
    update = Update(
        delta=unpack_params(content.array_records["delta"]),
        weight=metrics.pop("weight"),
        devices=int(metrics.pop("devices")),
        metrics=metrics,
    )
    rejected = zip(
        _names(config, "rejected").tolist(), _names(config, "reasons").tolist(), strict=True
    )
    return Reply(
        round=_integer(config, "round"),
        devices=_names(config),
        update=update,
        single=bool(config["single"]),
        figures={name: array.numpy() for name, array in content.array_records["figures"].items()},
        rejected=dict(rejected),
    )


def failure(message: Message) -> str:
    """Return why a node could not answer; Flower wraps a sentence as "<class 'X'>:<'sentence'>"."""
    reason = message.error.reason or f"error {message.error.code}"
    wrapped = re.fullmatch(r"<class '[^']*'>:<'(.*)'>", reason, flags=re.DOTALL)
    return wrapped.group(1) if wrapped else reason


def is_refusal(message: Message) -> bool:
    """Whether a node refused what it was asked (WrongInput)."""
    return message.error.reason is not None and f".{WrongInput.__name__}'" in message.error.reason


def array_bytes(content: RecordDict) -> int:
    """Return the bytes of all arrays in a message."""
    return sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )


def pack_evaluation(arrays: ArrayRecord, period: int) -> RecordDict:
    """Pack a model for devices to measure on their held-out examples of a period."""
    return RecordDict({"params": arrays} | dict(pack_question(period)))


def unpack_evaluation(content: RecordDict) -> tuple[Params, int]:
    return unpack_params(content.array_records["params"]), unpack_question(content)


def pack_comparison(before: ArrayRecord, after: ArrayRecord, period: int) -> RecordDict:
    """Pack two releases for devices to compare on their held-out examples of a period."""
    return RecordDict({"before": before} | dict(pack_evaluation(after, period)))


def is_comparison(content: RecordDict) -> bool:
    return "before" in content.array_records


def unpack_comparison(content: RecordDict) -> tuple[Params, Params, int]:
    """Return the earlier release, the later one and the period."""
    after, period = unpack_evaluation(content)
    return unpack_params(content.array_records["before"]), after, period


def pack_flips(flips: DeviceFlips) -> RecordDict:
    config = ConfigRecord(
        {"wire_version": WIRE_VERSION, "devices": "\n".join(flips.devices.tolist())}
    )
    return RecordDict({"flips": config, "counts": ArrayRecord({"counts": Array(flips.counts)})})


def unpack_flips(content: RecordDict) -> DeviceFlips:
    config = _versioned(content, "flips")
    return DeviceFlips(_names(config), content.array_records["counts"]["counts"].numpy())


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


def _names(config: ConfigRecord, key: str = "devices") -> NDArray[np.str_]:
    names = config[key]
    assert isinstance(names, str), f"{key} travel as one string"
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
