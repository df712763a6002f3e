"""Checks that keep answers out of the model: late, foreign, malformed, not finite or too large.

Every honest node checks each of its devices by the same rules before it answers. So one bad device
loses its own place in the sum, and no other device does. The server rejects a whole sum only where
a node misbehaves.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from logging import getLogger

import numpy as np
import torch
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fedsim.config import Aggregation, Config
from fedsim.types import Asked, Cohort, DeviceId, Params, Reply, Update
from fedsim.wire import NOT_FINITE, array_bytes, unpack_reply

logger = getLogger(__name__)

ROUNDING = 1e-6
NAMES = 20
"""The most devices that a line of the log names."""


def skips_rounds(settings: Aggregation) -> bool:
    """Whether devices' answers decide if a round is skipped: no amplification by sampling then."""
    return settings.min_updates > 0


def guarded(config: Config) -> Aggregation:
    """Return the bounds on answers; a masked sum has no bound on its norm, which says nothing."""
    masked = config.dp.unit != "none" and config.dp.trust == "secure_sum"
    return config.aggregation.model_copy(update={"max_norm": 0.0}) if masked else config.aggregation


class Guard:
    """Accepts a round's answers, or rejects them and keeps the reasons by name."""

    def __init__(
        self,
        round: int,
        asked: Mapping[int, Cohort],
        params: Params,
        form: Asked,
        settings: Aggregation,
    ) -> None:
        """`asked` is each node's part of the cohort."""
        self.round = round
        self.asked = asked
        self.params = params
        self.form = form
        self.settings = settings
        self.rejected: dict[DeviceId, str] = {}
        """The reason for each update that a node or this guard left out.

        Keys are devices, or a node that answered twice or was not asked.
        """
        self._answered: set[int] = set()

    def accepted(self, messages: Iterable[Message]) -> Iterator[Reply]:
        """Yield the replies that may go into the model; single updates without bad devices."""
        for message in messages:
            node = message.metadata.src_node_id
            reply, reason = self._read(message.content, node)
            if reply is None:
                self._reject(node, reason)
                continue
            part = self.asked[node]
            self._admit(node, part)
            self._note({d: why for d, why in reply.rejected.items() if d in part.devices})
            yield self._rows(reply) if self.form.single else reply

    def _read(self, content: RecordDict, node: int) -> tuple[Reply | None, str]:
        """Return the reply, or None and what is wrong with it."""
        if node not in self.asked:
            return None, "it was not asked"
        if node in self._answered:
            return None, "it answered before"
        size = array_bytes(content)
        limit = self.settings.max_bytes
        if limit and size > limit:
            return None, f"it sent {size} bytes, aggregation.max_bytes is {limit}"
        try:
            reply = unpack_reply(content)
        except Exception as error:  # whatever a node sends, the round goes on
            return None, f"it cannot be read: {type(error).__name__}: {error}"
        reason = self._fault(reply, self.asked[node])
        return (None, reason) if reason else (reply, "")

    def _fault(self, reply: Reply, part: Cohort) -> str:
        """Return why a reply as a whole may not go into the model, or an empty string."""
        covered = np.isin(part.devices, reply.devices)
        if reply.round != self.round:
            return f"it answers round {reply.round}, this is round {self.round}"
        if covered.sum() != len(reply.devices):
            strange = reply.devices[~np.isin(reply.devices, part.devices)].tolist()
            return (
                f"it covers {strange[0]!r}, whom nobody asked"
                if strange
                else "it names a device twice"
            )
        if reply.single != self.form.single or reply.update.devices != len(reply.devices):
            return "it is not of the form that was asked for"
        return self._misshapen(reply) or self._too_much(reply, float(part.weights[covered].sum()))

    def _misshapen(self, reply: Reply) -> str:
        first = (len(reply.devices),) if self.form.single else ()
        delta = reply.update.delta
        if delta.keys() != self.params.keys():
            return "its parameters have other names than the model's"
        for name, p in self.params.items():
            found = list(delta[name].shape)
            wanted = [*first, *p.shape]
            if found != wanted or not delta[name].is_floating_point():
                return f"its {name!r} is {delta[name].dtype} of shape {found}, not {wanted}"
        if any(len(values) != len(reply.devices) for values in reply.figures.values()):
            return "its figures are not one a device"
        if (self.form.single or self.form.figures) and len(reply.devices) and not reply.figures:
            return "it has no figures of its devices"
        return ""

    def _too_much(self, reply: Reply, weight: float) -> str:
        """Return what is wrong with figures and sum; `_rows` checks single updates one by one."""
        if not replace(reply.update, delta={}).finite:
            return NOT_FINITE
        if abs(reply.update.weight - weight) > ROUNDING * max(weight, 1.0):
            return f"its weight is {reply.update.weight:g}, that of its devices {weight:g}"
        return "" if self.form.single else self._wrong_size(reply.update, weight)

    def _wrong_size(self, update: Update, weight: float) -> str:
        """Return what is wrong with an update's size, or an empty string.

        The norm of a sum is at most its weight times the largest norm of a device.
        """
        if not update.finite:
            return NOT_FINITE
        limit = self.settings.max_norm
        if limit and update.norm > weight * limit * (1 + ROUNDING):
            return f"its norm is {update.norm:.4g}, at most {weight * limit:.4g} is possible"
        return ""

    def _rows(self, reply: Reply) -> Reply:
        """Return a reply of single updates, and its metrics, without devices whose own is wrong."""
        reasons = [self._wrong_size(_alone(reply, i), 1.0) for i in range(len(reply.devices))]
        self._note({d: why for d, why in zip(reply.devices.tolist(), reasons, strict=True) if why})
        good = np.array([not reason for reason in reasons], dtype=bool)
        index = torch.from_numpy(np.flatnonzero(good))
        figures = {name: values[good] for name, values in reply.figures.items()}
        update = replace(
            reply.update,
            delta={name: d[index] for name, d in reply.update.delta.items()},
            devices=int(good.sum()),
            metrics={name: float(values.sum()) for name, values in figures.items()},
        )
        return replace(reply, devices=reply.devices[good], update=update, figures=figures)

    def _admit(self, node: int, part: Cohort) -> None:
        """Note that a node has answered; its devices do not pay for an earlier bad message."""
        self._answered.add(node)
        before = [self.rejected.pop(device, "") for device in part.devices.tolist()]
        if any(before):
            self.rejected[f"node {node}"] = before[0]

    def _reject(self, node: int, reason: str) -> None:
        """Leave out a node's whole message; its devices that were accepted before stay accepted."""
        waiting = node in self.asked and node not in self._answered
        names = self.asked[node].devices.tolist() if waiting else [f"node {node}"]
        self.rejected |= dict.fromkeys(names, reason)
        logger.warning(
            "round %d: the update of node %s (%s) is rejected: %s",
            self.round,
            node,
            _named(self.asked[node].devices if node in self.asked else ()),
            reason,
        )

    def _note(self, rejected: Mapping[DeviceId, str]) -> None:
        """Leave out single devices; the log has one line for each reason."""
        self.rejected |= rejected
        for reason in dict.fromkeys(rejected.values()):
            devices = [device for device, why in rejected.items() if why == reason]
            logger.warning(
                "round %d: rejected devices %s: %s", self.round, _named(devices), reason[:200]
            )


def _alone(reply: Reply, row: int) -> Update:
    """Return one device's update from a reply of single updates."""
    metrics = {name: float(values[row]) for name, values in reply.figures.items()}
    return Update({name: d[row] for name, d in reply.update.delta.items()}, 1.0, 1, metrics)


def _named(devices: Sequence[str] | NDArray[np.str_]) -> str:
    shown = ", ".join(map(str, devices[:NAMES]))
    return (
        f"{shown} and {len(devices) - NAMES} more" if len(devices) > NAMES else shown or "no device"
    )
