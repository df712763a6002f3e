"""The ladder of membership attacks on Snips: `python experiments/results/snips_membership.py
--data-dir DIR`.

A binary bag of the 2,000 commonest words, an MLP 2000-32-7, 5,000 utterances of which 5 % get a
random label, each utterance in half of the models: mean AUC and true positive rate at 0.1 % false
positives over 8 targets, by the number of reference models. The targets of a pool share records and
models, so the table gives the range over three pools, each with its own records, coins and models.
"""

import argparse
import gzip
import json
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.audit.attacks import ATTACKS
from fedsim.audit.centralised_proxy import CentralisedProxy
from fedsim.audit.roc import auc, roc
from fedsim.audit.scores import Scores, fair_coins
from fedsim.audit.shadow_scores import score_shadows
from fedsim.data.encode import pad, tokenize
from fedsim.errors import WrongInput
from fedsim.models.layers import Embedding, Linear
from fedsim.seeds import generator

RECORDS = 5000
WORDS = 2000
HIDDEN = 32
MISLABELLED = 0.05
TARGETS = 8
REFERENCES = (2, 4, 8, 16)
SHOWN = (
    "loss",
    "gap",
    "modified_entropy",
    "calibrated_loss",
    "ratio_offline",
    "ratio",
    "lira_offline",
    "lira",
)

PUBLISHED = {
    "loss": {2: 0.625},
    "calibrated_loss": {2: 0.650, 4: 0.673, 8: 0.686, 16: 0.694},
    "ratio_offline": {2: 0.677, 4: 0.686, 8: 0.691, 16: 0.695},
    "ratio": {2: 0.686, 4: 0.692, 8: 0.696, 16: 0.699},
    "lira": {4: 0.679, 8: 0.703, 16: 0.723},
}
"""AUCs over all records of an earlier, independent computation with the same set-up."""


class WordMlp(nn.Module):
    """2000-32-7 with ReLU over a binary bag, given as ids of its words: the first layer's rows,
    summed.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.first = Embedding(WORDS + 1, HIDDEN)
        nn.init.uniform_(self.first.weight, -(WORDS**-0.5), WORDS**-0.5)
        self.bias = nn.Parameter(torch.empty(1, HIDDEN).uniform_(-(WORDS**-0.5), WORDS**-0.5))
        self.last = Linear(HIDDEN, labels)

    def forward(self, words: Tensor) -> Tensor:
        """words: [..., T] distinct ids, 0 behind the last -> logits [..., labels]."""
        rows = self.first(words) * (words > 0).unsqueeze(-1)
        return self.last((rows.sum(-2) + self.bias).relu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=os.environ.get("FEDSIM_DATA"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    start = time.perf_counter()
    pools = [pool(Path(options.data_dir), seed) for seed in range(1, options.seeds + 1)]
    for scores, _ in pools:
        print(f"{len(scores.keep)} models, {accuracy(scores)}")
    everyone = np.ones(RECORDS, dtype=bool)
    print(*table([(scores, everyone) for scores, _ in pools], REFERENCES), sep="\n")
    print("\nMislabelled only:\n", *table(pools, REFERENCES[-1:]), sep="\n")
    print(f"\nLargest distance from the published AUCs: {distance(pools):.3f}")
    print(f"{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} thread(s)")


def pool(data_dir: Path, seed: int) -> tuple[Scores, np.ndarray]:
    """Return the scores of one pool of models, and which records are mislabelled."""
    words, labels, mislabelled = snips(data_dir, seed)
    return train(words, labels, seed, models=max(REFERENCES) + TARGETS), mislabelled


def snips(data_dir: Path, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return word ids [5000, T], labels [5000] and which of them are random."""
    rows = []
    for split in ("train", "dev", "test"):
        with gzip.open(
            data_dir / "snips" / f"slotgated_{split}.jsonl.gz", "rt", encoding="utf-8"
        ) as lines:
            rows += [json.loads(line) for line in lines]
    distinct = list({row["text"]: row for row in rows}.values())
    rng = generator(seed, "snips")
    chosen = [distinct[i] for i in np.sort(rng.choice(len(distinct), RECORDS, replace=False))]
    texts = [tokenize(row["text"]) for row in chosen]
    counts = Counter(word for text in texts for word in text)
    ids = {word: i for i, (word, _) in enumerate(counts.most_common(WORDS), start=1)}
    bags = [sorted({ids[word] for word in text if word in ids}) for text in texts]
    names = sorted({row["intent"] for row in chosen})
    labels = np.array([names.index(row["intent"]) for row in chosen])
    mislabelled = rng.random(RECORDS) < MISLABELLED
    labels[mislabelled] = rng.integers(len(names), size=mislabelled.sum())
    return pad(bags, fill=0), torch.from_numpy(labels), mislabelled


def train(words: Tensor, labels: Tensor, seed: int, models: int) -> Scores:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return WordMlp(int(labels.max()) + 1)

    proxy = CentralisedProxy(
        make, words, labels, steps=200, batch=128, lr=0.01, seed=seed, draws="independent"
    )
    return score_shadows(fair_coins(models, RECORDS, seed), labels, proxy)


def accuracy(scores: Scores) -> str:
    right = scores.predictions.correct
    return (
        f"accuracy {right[scores.keep].mean():.3f} on members, "
        f"{right[~scores.keep].mean():.3f} on others"
    )


def table(pools: list[tuple[Scores, np.ndarray]], columns: tuple[int, ...]) -> list[str]:
    """Markdown: mean AUC (lowest to highest pool) / mean true positive rate at 0.1 %, by
    references.
    """
    lines = [
        "| references | " + " | ".join(map(str, columns)) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in SHOWN:
        cells = [cell(pools, name, references) for references in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def cell(pools: list[tuple[Scores, np.ndarray]], name: str, references: int) -> str:
    try:
        areas, rates = zip(*(measured(*pool, name, references) for pool in pools), strict=True)
    except WrongInput:
        return "refused"
    return f"{np.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f}) / {np.mean(rates):.3f}"


def measured(scores: Scores, judged: np.ndarray, name: str, references: int) -> tuple[float, float]:
    """Return the mean AUC and the mean true positive rate at 0.1 % over the targets."""
    areas = []
    rates = []
    for model in range(TARGETS):
        target = scores.target(model, references)
        found = ATTACKS[name](target)[judged]
        member = target.member[judged]
        areas.append(auc(found, member))
        rates.append(rate(found, member, 0.001))
    return float(np.mean(areas)), float(np.mean(rates))


def distance(pools: list[tuple[Scores, np.ndarray]]) -> float:
    """Return the largest distance of the mean AUCs from the published ones, over all records."""
    everyone = np.ones(RECORDS, dtype=bool)
    return max(
        abs(
            float(np.mean([measured(scores, everyone, name, references)[0] for scores, _ in pools]))
            - area
        )
        for name, row in PUBLISHED.items()
        for references, area in row.items()
    )


def rate(found: np.ndarray, member: np.ndarray, fpr: float) -> float:
    """The true positive rate; one target's stands on two false positives, so only means count."""
    false, true = roc(found, member)
    return float(true[np.searchsorted(false, fpr, side="right") - 1])


if __name__ == "__main__":
    main()
