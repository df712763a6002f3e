"""What travels arrives as it was sent."""

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fedsim.errors import RunFailed
from fedsim.types import Announcement, Asked, Cohort, Reply, Update
from fedsim.wire import (
    pack_announcement,
    pack_params,
    pack_reply,
    pack_task,
    unpack_announcement,
    unpack_asked,
    unpack_reply,
    unpack_task,
)

PARAMS = {"a.weight": torch.randn(3, 2), "b": torch.tensor(1.5)}


def inflated(content: RecordDict) -> RecordDict:
    """The content after Flower's own serialisation."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    contents = {key: value.deflate() for key, value in get_all_nested_objects(content).items()}
    found = inflate_object_from_contents(content.object_id, contents)
    assert isinstance(found, RecordDict)
    return found


def test_a_task_arrives_without_the_inclusion_probabilities() -> None:
    cohort = Cohort(4, np.array(["x", "y"]), np.array([0.1, 0.2]), np.array([1.0, 2.5]))
    params, found = unpack_task(inflated(pack_task(pack_params(PARAMS), cohort)))
    assert all(torch.equal(params[n], PARAMS[n]) for n in PARAMS)
    assert (found.round, found.devices.tolist(), found.weights.tolist()) == (
        4,
        ["x", "y"],
        [1.0, 2.5],
    )
    assert found.probabilities is None


def test_a_reply_arrives_in_double_precision() -> None:
    update = Update({"w": torch.tensor([1 / 3]).double()}, 2.5, 3, {"loss_sum": 0.25, "steps": 4.0})
    figures = {"loss_sum": np.array([0.125, 0.125, 0.0])}
    sent = Reply(4, np.array(["a", "b", "c"]), update, False, figures, {"d": "why"})
    found = unpack_reply(inflated(pack_reply(sent)))
    assert torch.equal(found.update.delta["w"], update.delta["w"])
    assert (found.update.weight, found.update.devices, found.update.metrics) == (
        2.5,
        3,
        update.metrics,
    )
    assert (found.round, found.devices.tolist(), found.single) == (4, ["a", "b", "c"], False)
    assert found.figures["loss_sum"].tolist() == [0.125, 0.125, 0.0]
    assert found.rejected == {"d": "why"}


@pytest.mark.parametrize("form", [Asked(), Asked(single=True), Asked(figures=True)])
def test_a_task_declares_what_it_wants(form: Asked) -> None:
    cohort = Cohort(4, np.array(["x"]), None, np.array([1.0]))
    assert unpack_asked(inflated(pack_task(pack_params(PARAMS), cohort, form))) == form


@pytest.mark.parametrize("devices", [[], ["a"], ["a", "b c", "ü"]])
def test_an_announcement_arrives(devices: list[str]) -> None:
    sent = Announcement(np.array(devices, dtype=np.str_), np.arange(len(devices)))
    found = unpack_announcement(inflated(pack_announcement(sent)))
    assert found.devices.tolist() == devices
    assert found.activity.tolist() == list(range(len(devices)))


def test_another_release_s_message_is_refused() -> None:
    content = pack_announcement(Announcement(np.array(["a"]), np.array([1])))
    content.config_records["announcement"]["wire_version"] = 99
    with pytest.raises(RunFailed, match="wire version 99, this is 1"):
        unpack_announcement(content)
