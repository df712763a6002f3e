"""The report page: self-contained, from the run's files alone."""

import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Cli
from factory import configured

from fedsim.app.cli.progress import METRICS
from fedsim.app.engines.local import run_local
from fedsim.app.report.parts import PageSection
from fedsim.app.report.run_chapter import SECTIONS, run_chapter
from fedsim.app.report.write import report_on, write_report
from fedsim.app.rundir.files import Row
from fedsim.app.rundir.metrics import SHOWN
from fedsim.app.rundir.run_dir import RunDir
from fedsim.errors import WrongInput

SMALL = {
    "name": "small <&>",
    "data.devices": 20,
    "data.examples": 200,
    "train.rounds": 3,
    "model.embedding": 8,
}


def run(out: Path, **changes: object) -> RunDir:
    return run_local(configured(SMALL | {"name": "small", "place.out": str(out)}, **changes))


PRIVATE = {"dp__unit": "device", "selection__cohort": 5, "dp__noise_multiplier": 2.0}


def reported(out: Path, **changes: object) -> RunDir:
    """Return a finished run with its page; tests read it and change only a `copy` of it."""
    made = run(out, **changes)
    write_report(made)
    return made


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return reported(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def centralised(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return reported(tmp_path_factory.mktemp("centralised"), train__centralised=True)


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return reported(tmp_path_factory.mktemp("private"), **PRIVATE)


def page_of(made: RunDir) -> str:
    return (made.path / "report.html").read_text()


def copy(made: RunDir, out: Path) -> RunDir:
    """Return a copy of a shared run, to write into."""
    return RunDir(shutil.copytree(made.path, out / "copy"))


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


GRID = [0.001 * 1.25**i for i in range(31)]


def attack_rows(round: int, strength: float = 0.25) -> list[Row]:
    """Rows as evaluators write them into `audit.jsonl`, made up."""
    tpr = [f ** (1 - strength) for f in GRID]
    exposures = [0.4 + strength * 5 * i / 12 for i in range(24)]
    seen = {"round": round, "view": "final", "unit": "device"}
    attack = seen | {
        "kind": "membership",
        "game": "coins",
        "fpr": GRID,
        "tpr": tpr,
        "blind_auc": 0.51,
    }
    attack |= {"tpr_low": [t * 0.8 for t in tpr], "tpr_high": [min(1.0, t * 1.2) for t in tpr]}
    attack |= {"tpr_at_1pct": 0.03, "ppv_1pct": 0.04, "records": 400, "targets": 8}
    attack |= {"allowed_tpr": [min(1.0, math.exp(2) * f) for f in GRID]}
    slices = [
        ("membership", "activity_decile", i, {"auc": 0.5 + i / 50, "auc_low": 0.5, "auc_high": 0.8})
        for i in range(10)
    ]
    slices += [
        ("membership", "label", f"label {i}", {"auc": 0.6, "auc_low": 0.5, "auc_high": 0.7})
        for i in range(4)
    ]
    slices += [("canary", "copies", c, {"exposure_mean": 1.4 + c / 10}) for c in (1, 10, 50)]
    return [
        attack | {"attack": "lira", "auc": 0.55 + strength / 2, "auc_low": 0.6, "auc_high": 0.7},
        attack | {"attack": "loss", "auc": 0.55, "auc_low": 0.53, "auc_high": 0.57},
        *(
            seen | {"kind": "slice", "of": of, "slice": name, "value": v} | more
            for of, name, v, more in slices
        ),
        seen
        | {"kind": "canary", "pattern": "pin", "copies": 10, "devices": 1, "exposures": exposures}
        | {"null_exposures": [0.1 + i / 9 for i in range(30)], "exposure_mean": 1.2 + 4 * strength}
        | {"exposure_max": 6.1, "null_mean": 1.45, "p_value": 0.01, "canaries": 24},
        *(
            seen
            | {
                "kind": "audit",
                "method": method,
                "epsilon_low": low * strength,
                "confidence": 0.95,
                "ceiling": top,
            }
            | {"epsilon_ledger": 3.0, "delta": 1e-4, "estimate": method == "one_shot"}
            for method, low, top in (
                ("two_worlds", 4, 5.2),
                ("one_run", 2, 3.4),
                ("one_shot", 16, 9.0),
            )
        ),
        *(
            {
                "kind": "sanity",
                "round": round,
                "name": name,
                "ok": ok,
                "expected": "AUC .5",
                "observed": "0.5",
            }
            for name, ok in (("untrained model, loss", True), ("noise x 0", False))
        ),
    ]


def attacked(run: RunDir, strength: float = 0.25) -> RunDir:
    """Put made-up attacks on two rounds into a finished run."""
    for round in (1, 3):
        for row in attack_rows(round, strength * round / 3):
            run.append_row(row, "audit.jsonl")
    summary = run.summary
    assert summary is not None
    rows = attack_rows(3, strength)
    kinds = ("membership", "canary", "audit")
    run.write_summary(
        summary | {"attacks": {k: [row for row in rows if row["kind"] == k] for k in kinds}}
    )
    return run


def test_the_page_needs_nothing_from_outside(centralised: RunDir) -> None:
    text = page_of(centralised)
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_page_states_the_gap_to_the_centralised_model(centralised: RunDir) -> None:
    text = page_of(centralised)
    summary = centralised.summary
    assert summary is not None
    a, b = (s["intent_accuracy"] for s in (summary["metrics"], summary["reference"]["centralised"]))
    for number in (f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}"):
        assert f">{number}</td>" in text


def test_figures_are_written_beside_the_page(plain: RunDir) -> None:
    names = {p.name for p in (plain.path / "figures").iterdir()}
    drawn = ("learning", "activity", "participation", "time")
    assert names == {f"{name}.{suffix}" for name in drawn for suffix in ("svg", "png", "pdf")}
    assert all(p.stat().st_size > 5000 for p in (plain.path / "figures").iterdir())


def test_an_unfinished_run_has_a_report_too(plain: RunDir, tmp_path: Path) -> None:
    found = copy(plain, tmp_path)
    (found.path / "summary.json").unlink()
    assert "unfinished, 3 of 3 rounds" in write_report(found).read_text()


def test_a_run_without_a_round_is_refused(plain: RunDir, tmp_path: Path) -> None:
    found = copy(plain, tmp_path)
    (found.path / "rounds.jsonl").unlink()
    with pytest.raises(WrongInput, match="has no finished round yet"):
        write_report(found)


def test_the_page_tells_the_privacy_that_the_run_has(private: RunDir, plain: RunDir) -> None:
    text = page_of(private)
    summary = private.summary
    assert summary is not None
    assert f"epsilon at most {summary['privacy']['epsilon_guarantee']:.3f}" in text
    assert "Nothing bounds what this model reveals" not in text
    assert "Nothing bounds what this model reveals" in page_of(plain)


def plain_cells(made: RunDir) -> str:
    return write_report(made).read_text().replace('<td class="short">', "<td>")


def test_attacks_stand_on_the_page_as_far_as_there_are_any(private: RunDir, tmp_path: Path) -> None:
    made = copy(private, tmp_path)
    bare = page_of(made)
    assert bare.count("It was not measured in this run") == 3
    assert "Not run with this run" in bare
    text = plain_cells(attacked(made))
    assert "It was not measured in this run" not in text
    names = {p.stem for p in (made.path / "figures").glob("*.pdf")}
    assert names >= {
        "roc",
        "exposure",
        "audits",
        "panel",
        "ledger",
        "membership-label",
        "canary-copies",
    }
    assert '<tr class="bad"><td>RED</td><td>noise x 0</td>' in text
    assert '<tr class="good"><td>ok</td>' in text
    assert Page(text).open == []


def test_an_audit_above_its_ledger_is_red_unless_it_is_an_estimate(
    plain: RunDir, tmp_path: Path
) -> None:
    text = plain_cells(attacked(copy(plain, tmp_path), 1.0))
    assert '<tr class="bad"><td>two worlds</td>' in text
    assert "<tr><td>one run</td>" in text
    assert "<tr><td>one shot</td>" in text


def test_a_section_is_one_entry_in_the_order_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECTIONS, "mine", lambda run, checks: PageSection("mine", run.config.name))
    sections = run_chapter(run(tmp_path), []).sections
    assert [section.key for section in sections] == list(SECTIONS)
    assert sections[-1].title == "small"


def test_what_the_terminal_shows_is_what_the_page_shows() -> None:
    assert METRICS[: len(SHOWN)] == SHOWN


@pytest.mark.slow
def test_runs_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        run(tmp_path, seed=seed, dp__unit="device", selection__cohort=5, train__lr=0.1 * seed)
    page = report_on([tmp_path], 0.05)
    text = page.read_text()
    assert page.parent.parent == Path("reports")
    assert "2 runs side by side" in text
    assert "lr 0.2, seed 2" in text
    assert (page.parent / "figures/curves.png").is_file()
    assert (page.parent / "figures/1-learning.png").is_file()  # each run's own chapter
    assert Page(text).open == []
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_a_sweep_has_its_frontier_its_cheapest_run_and_its_failures_on_the_page(
    fedsim: Cli, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(
        "".join(f"{k} = {v!r}\n" for k, v in SMALL.items() if k != "name")
    )
    (tmp_path / "broken.py").write_text("def rule(view, settings, rng):\n    1 / 0\n")
    (tmp_path / "s.sweep.toml").write_text(
        'base = "tiny.toml"\nseeds = [1, 2]\n[set]\ndp.unit = "device"\nselection.cohort = 5\n'
        '[grid]\nselection.rule = ["uniform", "broken:rule"]\ndp.noise_multiplier = [1.0, 4.0]\n'
    )
    assert fedsim("sweep", "s.sweep.toml", check=False).returncode == 1
    done = fedsim("report", "runs/s")
    page = tmp_path / done.stdout.splitlines()[-1]
    text = page.read_text()
    assert page.name == "report.html"
    assert "Cheapest within 5% of the best utility" in text
    assert text.count("ZeroDivisionError") == 4
    assert (page.parent / "figures/pareto.pdf").is_file()
    assert "fedsim sweep s.sweep.toml" in text
    assert Page(text).open == []
