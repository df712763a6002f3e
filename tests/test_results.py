"""What the scripts behind published figures compute, by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "results"))

import selection
import selection_table


def test_the_interval_is_student_s() -> None:
    # mean 2, sd 1, t(0.975, 2) = 4.302653
    assert selection_table.t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.302653 / 3**0.5))
    assert selection_table.interval([0.01, 0.02, 0.03], 1, 100, "+") == "+2.0 ± 2.5"


def test_runs_are_compared_after_as_many_steps_as_uniform_selection_takes() -> None:
    base = [{"steps": [10, 20], "curve": [0.1, 0.2]}]
    other = [{"steps": [15, 25, 40], "curve": [0.2, 0.3, 0.6]}]
    assert selection_table.at_equal_steps(other, base) == pytest.approx([0.25])
    assert selection_table.at_equal_steps(base, other) == pytest.approx([0.2])  # its end


def test_a_target_that_some_seeds_miss_is_not_averaged() -> None:
    missed = [{"rounds_to_target": 10}, {"rounds_to_target": None}]
    assert selection_table.rounds_to_target(missed, 60) == "1 of 2 get there in 60"


def test_the_grid_has_every_cell_once_with_a_setting_of_its_own() -> None:
    cells = list(selection.grid(["massive", "star"]))
    assert len(cells) == 2 * 5 * 3 * (10 + 5)
    configs = {(c.set, c.config("data", "runs").hash, c.seed) for c in cells}
    assert len(configs) == len(cells)
