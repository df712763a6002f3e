"""What a run promises is never less than what its ledger counts; who counts as a device.

Seen to fail: a guarantee over `train.rounds` alone, members of the last period alone, groups as
int16.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedsim.app.budget.spending import Spending, privacy_figures
from fedsim.app.engines.local import run_local
from fedsim.app.rundir.run_dir import RunDir
from fedsim.config import from_flat
from fedsim.privacy.accounting import Event, epsilon
from fedsim.privacy.entries import visible_entry
from fedsim.privacy.ledger import Entry, Ledger, row_events

TINY = {
    "name": "tiny",
    "data.devices": 30,
    "data.examples": 300,
    "model.embedding": 8,
    "model.hidden": 8,
    "train.rounds": 20,
    "evaluation.every": 20,
    "selection.rule": "uniform",
    "selection.cohort": 6,
    "aggregation.rule": "fedavg",
    "place.threads": 1,
    "dp.unit": "device",
}


class Killed(Exception):
    pass


def test_the_guarantee_counts_rounds_that_were_done_again_with_other_noise(tmp_path: Path) -> None:
    settings = from_flat(TINY | {"dp.noise_source": "os", "place.out": str(tmp_path)})

    def stop(row: dict[str, object]) -> None:
        if row["round"] == 5:
            (RunDir.of(settings).path / "checkpoints" / "round-000005.npz").unlink()
            raise Killed

    with pytest.raises(Killed):
        run_local(settings, watch=stop)
    run = run_local(settings)
    assert run.summary is not None
    found = run.summary["privacy"]
    assert found["epsilon_guarantee"] == pytest.approx(
        epsilon([Event(1.0, 0.2, 25)], found["delta"])
    )
    assert found["epsilon_guarantee"] >= found["epsilon_max"] == found["epsilon_spent"]
    assert (run.rounds()[-1].dp_epsilon_spent_rdp or 0.0) >= found["epsilon_spent"]
    statement = (run.path / "privacy.md").read_text()
    assert "5 round(s) that were done again" in statement
    assert "the secret of the coins" in statement


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"selection.rule": "round_robin"},
        {"dp.unit": "example", "dp.trust": "local", "data.activity_public": "power2"},
    ],
    ids=["amplified", "visible", "example"],
)
def test_a_round_s_row_never_understates_what_its_ledger_holds(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    """Seen to fail: the last entry alone counted; the median device for the largest."""
    settings = TINY | {"train.rounds": 5, "place.out": str(tmp_path)} | changes
    run = run_local(from_flat(settings))
    assert run.summary is not None
    delta = run.summary["privacy"]["delta"]
    ledger = Ledger.open(run.path, 30)
    for done in run.rounds():
        events, counts = ledger.counts(lambda entry, last=done.round: entry.round <= last)
        each = {row_events(events, counts, device) for device in range(30)}
        largest = max(epsilon(found, delta) for found in each)
        assert done.dp_epsilon_spent_rdp is not None
        assert largest <= done.dp_epsilon_spent_rdp
    assert largest == pytest.approx(run.summary["privacy"]["epsilon_spent"])


def spending(tmp_path: Path, activity: list[int], now: list[int]) -> Spending:
    strategy = SimpleNamespace(
        roster=SimpleNamespace(devices=np.array(["a", "b"]), activity=np.array(now))
    )
    run = SimpleNamespace(path=tmp_path)
    settings = from_flat({"dp.unit": "device", "aggregation.rule": "fedavg"})
    return Spending(settings, strategy, run, 1e-3, "seeded", np.array(activity))  # type: ignore[arg-type]


def test_devices_of_any_period_count_and_no_device_gives_a_number(tmp_path: Path) -> None:
    one = spending(tmp_path, [4, 0, 0, 0], [0, 0])
    one.ledger.write(Entry(1, 1, "model", "x", ((Event(1.0),),), np.array([0, -1], dtype=np.int32)))
    assert one.members.tolist() == [True, False]
    assert privacy_figures(one, 9.0, "zero_out")["epsilon_median"] > 0
    nobody = spending(tmp_path / "empty", [0, 0], [0, 0])
    assert privacy_figures(nobody, 9.0, "zero_out")["epsilon_median"] == 0.0


def test_more_groups_than_sixteen_bits_hold_are_kept_apart() -> None:
    count = 40_000
    settings = from_flat(
        {"dp.unit": "device", "aggregation.rule": "fedavg", "aggregation.weights": "examples"}
    )
    weights = np.linspace(0.1, 1.0, count)
    made = visible_entry(settings, 1, 1, "x", np.arange(count), weights, count)
    assert made.members.tolist() == list(range(count))


def test_a_member_of_no_known_group_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="a member has a group"):
        Entry(1, 1, "model", "x", (), np.array([-2], dtype=np.int32))
