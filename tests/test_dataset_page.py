"""The page about a federation."""

from pathlib import Path

import pytest
from conftest import Cli
from test_report import Page

from fedsim.app.report.dataset_page import write_data_page
from fedsim.config import Config, from_flat, load

ROOT = Path(__file__).parents[1]
EVERYTHING = {
    "name": "page",
    "data.devices": 40,
    "data.examples": 600,
    "train.rounds": 4,
    "stream.mode": "continual",
    "stream.periods": 4,
    "stream.arrivals": "poisson",
    "availability.rule": "day_cycle",
}


def page(config: Config, folder: Path, data_dir: Path | None = None) -> tuple[Page, str]:
    text = write_data_page(config, data_dir, Path("x.toml"), folder).read_text()
    return Page(text), text


def test_the_page_shows_activity_labels_arrivals_and_availability(tmp_path: Path) -> None:
    found, text = page(from_flat(EVERYTHING), tmp_path)
    assert found.open == []
    names = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert names == {"activity", "lorenz", "labels", "divergence", "arrivals", "availability"}
    assert found.tags.count("figure") == len(names)
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert "Gini" in text


def test_what_a_federation_lacks_is_left_out(tmp_path: Path) -> None:
    static = {k: v for k, v in EVERYTHING.items() if not k.startswith(("stream", "availability"))}
    page(from_flat(static | {"data.task": "language"}), tmp_path)
    assert {p.stem for p in (tmp_path / "figures").glob("*.png")} == {"activity", "lorenz"}


@pytest.mark.parametrize("rule", ["always", "clock"])
def test_real_times_are_shown(tmp_path: Path, data_dir: Path, rule: str) -> None:
    config = load(ROOT / "experiments" / "continual_star.toml", [f"availability.rule={rule}"])
    _, text = page(config, tmp_path, data_dir)
    assert "Arrivals by period" in text
    assert ("Devices in reach" in text) == (rule == "clock")


def test_the_command_prints_the_page_s_path(fedsim: Cli, tmp_path: Path) -> None:
    done = fedsim("data", "experiments/quickstart.toml")
    assert done.stdout.strip() == "reports/quickstart/data.html"
    assert (tmp_path / "reports/quickstart/data.html").is_file()
    assert fedsim("data", "none.toml", check=False).returncode == 2
