"""What a release breaks and mends: by hand, on every task, and over a run's periods."""

from pathlib import Path

import pytest
import torch
from test_continual import CONTINUAL
from test_rounds import Killed, config, stop_after
from torch import Tensor, nn

from fedsim.app.engines.local import run_local
from fedsim.app.experiment.loading import load_holdings
from fedsim.app.rundir.metrics import mean_flips
from fedsim.app.rundir.releases import read_release
from fedsim.config import Config
from fedsim.models import build_model, parameters_of
from fedsim.models.evaluation import evaluate
from fedsim.models.flips import Flips, count_flips, count_flips_each
from fedsim.models.tasks import make_task
from fedsim.types import Examples, Params, Spec


class Constant(nn.Module):
    """Predicts for each token id the class that its row of `table` is largest in."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(4, 3))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        rows = self.table[tokens]
        return {
            "label": rows[..., 0, :],
            "tags": rows,
            "next": torch.cat([rows, rows[..., :1] - 9], -1),
        }


def predicting(*classes: int) -> Params:
    """Parameters under which token i has class classes[i]."""
    return {"table": torch.nn.functional.one_hot(torch.tensor(classes), 3).float()}


TOKENS = torch.tensor([[1, 2], [2, 3], [3, 1], [2, 0]])


def test_flips_by_hand() -> None:
    task = make_task(Spec("classification", vocabulary=4, labels=("a", "b", "c")))
    examples = Examples({"tokens": TOKENS, "label": torch.tensor([0, 1, 2, 2])})
    before = predicting(0, 0, 1, 1)
    after = predicting(0, 1, 2, 2)
    # before: 0 right, 1 right, 2 wrong, 3 wrong; after: 0 wrong, 1 wrong, 2 right, 3 right
    assert count_flips(Constant(), task, before, after, examples) == Flips(2, 2, 4)
    each = count_flips_each(Constant(), task, before, after, [examples[0:3], examples[3:4]])
    assert each == [Flips(2, 1, 3), Flips(0, 1, 1)]
    assert each[0].rates == {"negative_flip_rate": 2 / 3, "positive_flip_rate": 1 / 3}
    assert count_flips(Constant(), task, after, after, examples) == Flips(0, 0, 4)
    assert count_flips_each(Constant(), task, before, after, []) == []


def test_flips_count_tags_and_words_where_these_are_predicted() -> None:
    tags = make_task(Spec("tagging", vocabulary=4, tags=("O", "B-x", "I-x")))
    examples = Examples({"tokens": TOKENS, "tags": torch.tensor([[0, 1], [1, 1], [1, 0], [1, -1]])})
    # tokens 1 2 | 2 3 | 3 1 | 2 and padding: seven tags, of which token 2 stands at three
    assert count_flips(
        Constant(), tags, predicting(0, 0, 1, 1), predicting(0, 0, 0, 1), examples
    ) == Flips(3, 0, 7)
    language = make_task(Spec("language", vocabulary=4))
    words = Examples({"tokens": TOKENS, "next": torch.tensor([[2, 2], [2, 1], [2, 0], [2, 0]])})
    # known next words 2 after tokens 1 2 2 3 2; one unknown (1); nothing is counted at padding
    found = count_flips(Constant(), language, predicting(0, 0, 2, 0), predicting(0, 0, 0, 2), words)
    assert found == Flips(3, 1, 6)


def accuracy(run_config: Config, params: Params) -> float:
    holdings = load_holdings(run_config, None)
    module = build_model(holdings.dataset.spec, run_config.model, run_config.seed)
    task = make_task(holdings.dataset.spec)
    assert holdings.dataset.test is not None
    assert parameters_of(module).keys() == params.keys()
    return evaluate(module, task, params, holdings.dataset.test)["intent_accuracy"]


def test_every_release_is_compared_with_the_one_before(tmp_path: Path) -> None:
    settings = CONTINUAL | {"evaluation__on": "both", "evaluation__holdout": 0.3, "train__lr": 3.0}
    run = run_local(config(tmp_path, place__keep="all", **settings), nodes=2)
    rows = run.rows("releases.jsonl")
    assert [row["release"] for row in rows] == [2, 3]
    for row in rows:
        before, after = (read_release(run, row["release"] - back) for back in (1, 0))
        assert before is not None
        assert after is not None
        gained = accuracy(run.config, after) - accuracy(run.config, before)
        assert row["positive_flip_rate"] - row["negative_flip_rate"] == pytest.approx(gained)
        assert row["flips_on"] > 5
        assert (
            0
            <= row["device_negative_flip_rate_mean"]
            <= row["device_negative_flip_rate_worst_decile"]
            <= 1
        )
    assert run.summary is not None
    assert run.summary["metrics"]["negative_flip_rate"] == pytest.approx(
        sum(row["negative_flip_rate"] for row in rows) / 2
    )
    assert mean_flips([]) == {}


def test_an_interrupted_run_compares_the_same_releases(tmp_path: Path) -> None:
    undisturbed = run_local(config(tmp_path / "a", **CONTINUAL))
    broken = config(tmp_path / "b", **CONTINUAL)
    for stop in (2, 4, 5):
        with pytest.raises(Killed):
            run_local(broken, watch=stop_after(stop))
    assert run_local(broken).rows("releases.jsonl") == undisturbed.rows("releases.jsonl")
    kept = sorted(path.name for path in (undisturbed.path / "checkpoints").glob("release-*"))
    assert kept == ["release-0002.npz", "release-0003.npz"]
