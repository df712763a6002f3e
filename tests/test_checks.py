"""What is told before anything is written, and when a run cannot go on.

Seen to fail: every test here, before the code did what its name says.
"""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Error, Message
from test_rounds import config
from torch import nn

from fedsim.app.cli.description import describe
from fedsim.app.engines.local import run_local
from fedsim.app.engines.local_grid import LocalGrid
from fedsim.app.experiment.checks import check_training
from fedsim.app.node.app import app as client_app
from fedsim.app.rundir.manifest import roster_hash
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.server.calibration import calibrated
from fedsim.app.server.serve import serve
from fedsim.config import from_flat, to_flat
from fedsim.errors import RunFailed, WrongInput


def test_what_no_device_could_train_is_told_before_anything_is_written(tmp_path: Path) -> None:
    settings = config(tmp_path / "runs", dp__unit="example", train__grad_clip=1.0)
    with pytest.raises(WrongInput, match="grad_clip"):
        describe(settings, SimpleNamespace(print=lambda *a: None))  # type: ignore[arg-type]
    with pytest.raises(WrongInput, match="grad_clip"):
        calibrated(settings, 4.0, "noise")
    with pytest.raises(WrongInput, match="grad_clip"):
        run_local(settings)
    assert not (tmp_path / "runs").exists()


def test_a_layer_without_a_rule_for_clipping_is_named_at_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2))
    with pytest.raises(WrongInput, match=r"'1' .Bilinear. has no rule"):
        check_training(from_flat({"dp.unit": "example"}), module)
    check_training(from_flat({"dp.unit": "example", "dp.method": "loop"}), module)
    check_training(from_flat({}), module)


class Broken(LocalGrid):
    """Nodes that answer training by an error, those of `failing`."""

    failing: tuple[int, ...] = (2, 3)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        return [self._broken(m) if "update" in m.content.config_records else m for m in found]

    def _broken(self, message: Message) -> Message:
        if message.metadata.src_node_id not in self.failing:
            return message
        metadata = message.metadata
        bad = Message(Error(1, "out of memory"), reply_to=message)
        bad.metadata.__dict__["_src_node_id"] = metadata.src_node_id
        return bad


def test_a_round_in_which_all_nodes_fail_ends_the_run(tmp_path: Path) -> None:
    settings = config(tmp_path, train__rounds=1, selection__cohort=30)
    with pytest.raises(RunFailed, match=r"every node failed in round 1.*out of memory"):
        serve(Broken(client_app, to_flat(settings), 2), settings, {}, run_local)
    some = Broken(client_app, to_flat(settings), 2)
    some.failing = (2,)
    rows = serve(some, settings, {}, run_local, fresh=True).rows()
    assert 0 < rows[0]["devices"] < rows[0]["cohort"]


def test_a_run_goes_on_only_with_the_devices_that_it_began_with(tmp_path: Path) -> None:
    settings = config(tmp_path, train__rounds=2, dp__unit="device")

    class Killed(Exception):
        pass

    def stop(row: dict[str, object]) -> None:
        raise Killed

    with pytest.raises(Killed):
        run_local(settings, watch=stop)
    run = RunDir.of(settings)
    before = run.manifest
    run.write_manifest(before | {"roster": roster_hash(np.array(["other"]))})
    with pytest.raises(WrongInput, match="other devices than"):
        run_local(settings)
    run.write_manifest(before)
    run_local(settings)
