"""The report page: self-contained, from the run's files alone."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedsim.app.local import run_local
from fedsim.app.report import write_report
from fedsim.app.rundir import RunDir
from fedsim.config import from_flat
from fedsim.errors import WrongInput

SMALL = {
    "name": "small <&>",
    "data.devices": 20,
    "data.examples": 200,
    "train.rounds": 3,
    "model.embedding": 8,
}


def run(out: Path, **changes: object) -> RunDir:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return run_local(from_flat(SMALL | {"name": "small", "place.out": str(out)} | named))


class Page(HTMLParser):
    """Collects tags, links and text; raises on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href") and v]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = write_report(run(tmp_path, train__centralised=True)).read_text()
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_page_states_the_gap_to_the_centralised_model(tmp_path: Path) -> None:
    found = run(tmp_path, train__centralised=True)
    text, summary = write_report(found).read_text(), found.summary
    assert summary is not None
    a, b = (s["intent_accuracy"] for s in (summary["metrics"], summary["reference"]["centralised"]))
    for number in (f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}"):
        assert f">{number}</td>" in text


def test_figures_are_written_beside_the_page(tmp_path: Path) -> None:
    found = run(tmp_path)
    write_report(found)
    names = {p.name for p in (found.path / "figures").iterdir()}
    assert names == {f"{n}.{e}" for n in ("learning", "activity", "participation") for e in ("svg", "png")}
    assert all(p.stat().st_size > 5000 for p in (found.path / "figures").iterdir())


def test_an_unfinished_run_has_a_report_too(tmp_path: Path) -> None:
    found = run(tmp_path)
    (found.path / "summary.json").unlink()
    assert "unfinished, 3 of 3 rounds" in write_report(found).read_text()


def test_a_run_without_a_round_is_refused(tmp_path: Path) -> None:
    found = run(tmp_path)
    (found.path / "rounds.jsonl").unlink()
    with pytest.raises(WrongInput, match="has no finished round yet"):
        write_report(found)


def test_the_page_tells_the_privacy_that_the_run_has(tmp_path: Path) -> None:
    made = run(tmp_path, dp__unit="device", selection__cohort=5, dp__noise_multiplier=2.0)
    text = write_report(made).read_text()
    summary = made.summary
    assert summary is not None
    assert f"epsilon at most {summary['privacy']['epsilon_guarantee']:.3f}" in text
    assert "Nothing bounds what this model reveals" not in text
    assert "Nothing bounds what this model reveals" in write_report(run(tmp_path)).read_text()
