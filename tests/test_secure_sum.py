"""What nodes tell and obey under trust that does not reach the server; whole small runs and single
nodes.

Seen to fail: every test here, before the code did what its name says.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedsim.app.engines.local import run_local
from fedsim.app.node.node import bounded_by_config, disclosed, node_of
from fedsim.app.node.reply import Job, answer
from fedsim.config import Config, Dp, from_flat, to_flat
from fedsim.errors import WrongInput
from fedsim.privacy.noise import Os, Seeded
from fedsim.privacy.secure_sum import fewest_survivors
from fedsim.types import Asked, Cohort, Reply, Update
from strategies.federated import Federated
from strategies.reply_checks import guarded
from strategies.roster import Roster

NAMES = np.array([f"d{i}" for i in range(8)])
SUMS = {
    "dp.unit": "example",
    "dp.trust": "secure_sum",
    "dp.sampling_rate": 0.2,
    "train.local_steps": 1,
    "selection.cohort": 12,
    "selection.rule": "uniform",
}
DEVICES = {"dp.unit": "device", "dp.trust": "secure_sum"}


def config(*changes: dict[str, object], out: Path = Path()) -> Config:
    named: dict[str, object] = {
        "data.devices": 20,
        "data.examples": 200,
        "model.embedding": 8,
        "model.hidden": 8,
        "train.rounds": 2,
        "aggregation.rule": "fedavg",
        "place.threads": 1,
        "place.out": str(out),
    }
    for change in changes:
        named |= change
    return from_flat(named)


def told(dp: Dp) -> set[str]:
    metrics = {"steps": 4.0, "loss_sum": 1.0, "unclipped": 1.0}
    return set(disclosed(Reply(1, NAMES[:1], Update({}, 1.0, 1, metrics)), dp).update.metrics)


def test_numbers_of_steps_are_told_only_where_they_are_public() -> None:
    assert told(Dp(unit="device", trust="secure_sum")) == set()
    assert told(Dp(unit="example", trust="secure_sum")) == {"steps"}
    assert told(Dp(unit="device")) == {"steps", "loss_sum", "unclipped"}


def test_a_run_without_told_steps_has_rows_without_them(tmp_path: Path) -> None:
    rows = run_local(config(DEVICES, out=tmp_path)).rows()
    assert all("steps" not in row for row in rows)
    assert all("steps" in row for row in run_local(config(SUMS, out=tmp_path / "e")).rows())


@pytest.mark.parametrize("unit", [SUMS, DEVICES])
def test_a_server_never_bounds_what_it_sees_only_masked(unit: dict[str, object]) -> None:
    assert guarded(config(unit, {"aggregation.max_norm": 1.0})).max_norm == 0
    assert guarded(config({"dp.trust": "secure_sum", "aggregation.max_norm": 1.0})).max_norm == 1


class Spoiled:
    """A trainer whose device d1 has no finite change ."""

    def train(self, params: object, assigned: list[object], *more: object) -> Update:
        bad = any(a.device == "d1" for a in assigned)  # type: ignore[attr-defined]
        value = torch.full((2,), torch.nan if bad else 1.0 * len(assigned), dtype=torch.float64)
        weight = sum(a.weight for a in assigned)  # type: ignore[attr-defined]
        return Update({"w": value}, weight, len(assigned), {"steps": 1.0 * len(assigned)})


def test_a_broken_update_in_a_secure_sum_of_examples_becomes_zero_and_is_not_named() -> None:
    from clients.training import Assignment
    from fedsim.types import Examples

    some = Examples({"label": torch.zeros(3, dtype=torch.int64)})
    assigned = [Assignment(f"d{i}", some, 2.0, 2) for i in range(3)]
    job = Job(
        Spoiled(),  # type: ignore[arg-type]
        {"w": torch.zeros(2)},
        assigned,
        config(SUMS),
        Cohort(1, NAMES[:3], None),
    )
    reply = answer(job, Asked())
    assert reply.rejected == {}
    assert reply.devices.tolist() == ["d0", "d1", "d2"]
    assert (reply.update.weight, reply.update.devices) == (6.0, 3)
    assert reply.update.finite
    assert reply.update.delta["w"].tolist() == [2.0, 2.0]


def test_a_node_obeys_no_more_than_its_own_config_allows() -> None:
    asked = Cohort(1, NAMES[:3], None, np.array([1.0, 9.0, -9.0]), survivors=100)
    assert bounded_by_config(asked, config({"dp.unit": "example"})).survivors == 1
    assert bounded_by_config(asked, config()).survivors == 1
    assert bounded_by_config(asked, config(SUMS)).survivors == fewest_survivors(0.5, 12)
    assert bounded_by_config(replace(asked, survivors=2), config(SUMS)).survivors == 2
    bounded = bounded_by_config(asked, config({"dp.unit": "device"})).weights
    assert bounded.tolist() == [1.0, 1.0, 0.0]
    free = bounded_by_config(asked, config({"dp.unit": "example"})).weights
    assert free.tolist() == [1.0, 9.0, -9.0]


@pytest.mark.parametrize("unit", [SUMS, DEVICES])
def test_a_real_node_refuses_a_sum_that_is_only_simulated(
    unit: dict[str, object], tmp_path: Path
) -> None:
    node = {"data-path": str(tmp_path)}
    context = Context(1, 2, node, RecordDict(), dict(to_flat(config(unit))))
    with pytest.raises(WrongInput, match="nothing is masked"):
        node_of(context)
    context.node_config["insecure-noise"] = True
    assert node_of(context).real


def test_selection_coins_come_from_the_noise_secret_where_it_is_no_seed() -> None:
    roster = Roster(NAMES, np.ones(8, np.int64), np.ones(8, np.uint64))
    settings = config({"dp.unit": "device", "selection.cohort": 4, "selection.rule": "uniform"})

    def drawn(noise: Os | Seeded, chosen: Config = settings) -> list[list[str]]:
        strategy = Federated(chosen, roster, {"w": torch.zeros(1)}, noise=noise)
        return [strategy.select(round).devices.tolist() for round in range(1, 40)]

    secret = Os()
    assert drawn(secret) == drawn(secret)
    assert drawn(secret) != drawn(Os())
    assert drawn(secret) != drawn(Seeded(1))
    assert drawn(Seeded(1)) == drawn(Seeded(2))
    public = config({"selection.cohort": 4, "selection.rule": "uniform"})
    assert drawn(Os(), public) == drawn(Os(), public)
