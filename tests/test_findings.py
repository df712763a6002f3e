"""Findings and their rows: there and back, what tells them apart, what the summary and pages make
of them.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_rounds import config

from fedsim.app.engines.local import run_local
from fedsim.app.rundir.audit_file import FILE, attacks, findings_of, replace_findings
from fedsim.app.rundir.run_dir import RunDir
from fedsim.audit.findings import (
    TYPES,
    Area,
    AttackFigures,
    Canary,
    CanarySlice,
    CanaryThreat,
    Curve,
    ExposureFigures,
    Extraction,
    Finding,
    Leak,
    LowerBound,
    Membership,
    MembershipSlice,
    Region,
    SanityCheck,
    Threat,
    from_row,
    identity,
    keys_of,
    to_row,
    unsummed,
)
from fedsim.errors import WrongInput

THREAT = Threat("fair coins", "final", "device", 2, "federated")
MEMBERSHIP = Membership(
    "ratio",
    THREAT,
    AttackFigures(Area(0.7, 0.6, 0.8, "t"), Curve((0.1, 1.0), (0.3, 1.0), (0.2, 1.0), (0.4, 1.0))),
    blind_auc=0.5,
    region=Region((0.2, 1.0), 0.75, 0.0),
    releases=(0, 1),
    round=4,
)
CANARY = Canary(
    CanaryThreat("pin", "final", "group", 10, 2, "light", 1),
    ExposureFigures(3.0, exposures=(3.0,), null_exposures=(1.0, 0.5)),
    extraction=Extraction(digit_accuracy=0.0),
    round=4,
)
BOUND = LowerBound("one run", 0.0, unit="device", round=4)
EACH: list[Finding] = [
    MEMBERSHIP,
    CANARY,
    BOUND,
    Leak("token_set", "updates", "device", 1.0, 0.5, round=4),
    MembershipSlice("kept", False, "ratio", THREAT, Area(0.6), records=9, round=4),
    CanarySlice("copies", 10, "pin", "final", 2.5, round=4),
    SanityCheck("noise x 0", "red", "red", True, round=4),
]


@pytest.mark.parametrize("finding", EACH, ids=lambda each: type(each).__name__)
def test_a_finding_comes_back_from_its_row(finding: Finding) -> None:
    """Seen to fail: parts nested in the row; a figure of 0.0 taken for a missing one."""
    row = json.loads(json.dumps(to_row(finding)))
    assert not any(
        isinstance(value, dict) or value is None or value == [] for value in row.values()
    )
    assert from_row(row) == finding


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_no_two_fields_share_a_key_of_the_row(kind: type[Finding]) -> None:
    """Parts lie flat in a row. Seen to fail: a field `view` beside a threat that has one."""
    keys = ["kind", *(name for name, _ in keys_of(kind))]
    assert len(keys) == len(set(keys))


def test_a_row_of_another_version_is_read_as_far_as_it_goes() -> None:
    old = {
        "kind": "membership",
        "attack": "loss",
        "auc": 0.6,
        "round": 3,
        "view": "final",
        "time_s": 2.0,
    }
    found = from_row(old)
    assert found == Membership("loss", Threat("", "final", ""), AttackFigures(Area(0.6)), round=3)
    assert from_row({"kind": "of a later version", "round": 1}) is None
    assert from_row({"epsilon_low": 9.0, "estimate": True}, "audit") == LowerBound(
        "", 9.0, estimate=True
    )


def test_a_row_without_its_figure_is_refused_in_a_sentence() -> None:
    """Seen to fail: a missing number taken for None, which pages then could not draw."""
    with pytest.raises(WrongInput, match=r"attack 'loss', round 3.* lacks the number 'auc'"):
        from_row({"kind": "membership", "attack": "loss", "round": 3})


@pytest.mark.parametrize(
    "other",
    [
        replace(MEMBERSHIP, attack="loss"),
        replace(MEMBERSHIP, threat=replace(THREAT, references=4)),
        replace(MEMBERSHIP, round=8),
    ],
)
def test_another_threat_model_or_round_is_another_identity(other: Membership) -> None:
    """Seen to fail: identity of the outer fields alone, without those of parts."""
    assert identity(other) != identity(MEMBERSHIP)
    assert identity(replace(MEMBERSHIP, blind_auc=0.6)) == identity(MEMBERSHIP)


def test_the_summary_leaves_out_the_lists_that_only_figures_need() -> None:
    left_out = {"kind", "round", "fpr", "tpr", "tpr_low", "tpr_high", "allowed_tpr"}
    assert unsummed(Membership) == left_out
    assert unsummed(Canary) == {"kind", "round", "exposures", "null_exposures"}
    assert unsummed(LowerBound) == {"kind", "round"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return run_local(config(tmp_path, train__rounds=1))


def test_findings_take_the_place_of_their_like_and_leave_other_rows_alone(run: RunDir) -> None:
    """Seen to fail: rows that stay written anew from what was read, without their unknown keys."""
    strange = {"kind": "of a later version", "round": 4, "x": 1}
    older = to_row(replace(BOUND, method="another")) | {"unknown": 5}
    run.rewrite_rows([strange, older, to_row(BOUND)], FILE)
    better = replace(BOUND, epsilon_low=1.0)
    replace_findings(run, [better, MEMBERSHIP])
    assert run.rows(FILE) == [strange, older, to_row(better), to_row(MEMBERSHIP)]
    assert findings_of(run)[1:] == [better, MEMBERSHIP]
    assert run.summary is not None
    told = run.summary["attacks"]
    assert told == attacks(run)
    assert [row["auc"] for row in told["membership"]] == [0.7]
    assert "fpr" not in told["membership"][0]
    assert [row.get("unknown") for row in told["audit"]] == [5, None]
