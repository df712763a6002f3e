"""Asking devices how a new release differs from the last one, on what they hold out."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Message, MessageType

from fedsim.types import Params
from fedsim.wire import pack_comparison, pack_params, unpack_flips
from strategies.roster import Roster


def flip_questions(roster: Roster, before: Params, after: Params, period: int) -> list[Message]:
    """Return one message a node, with both models."""
    return [
        Message(
            pack_comparison(pack_params(before), pack_params(after), period),
            dst_node_id=int(node),
            message_type=MessageType.EVALUATE,
        )
        for node in np.unique(roster.nodes)
    ]


def device_flips(replies: Iterable[Message]) -> dict[str, Any]:
    """Return how the flip rates spread over devices: mean, and mean over the tenth that lost most.

    A node that failed is left out. The result is empty where no device has held-out examples.
    """
    found = [unpack_flips(reply.content) for reply in replies if not reply.has_error()]
    counts = np.concatenate([flips.counts for flips in found]) if found else np.zeros((0, 3))
    counts = counts[counts[:, 2] > 0]
    if not len(counts):
        return {}
    negative = counts[:, 0] / counts[:, 2]
    positive = counts[:, 1] / counts[:, 2]
    worst = np.sort(negative)[::-1][: max(1, len(negative) // 10)]
    return {
        "device_negative_flip_rate_mean": float(negative.mean()),
        "device_negative_flip_rate_worst_decile": float(worst.mean()),
        "device_positive_flip_rate_mean": float(positive.mean()),
        "flips_on": len(counts),
    }
