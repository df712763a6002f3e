"""What shadow models cost: `python experiments/benchmarks/shadows.py --data-dir DIR [--models 4 16
64]`.

Trains the product's bag model (word embeddings of 64, label head) on 5,000 Snips utterances, M
models side by side, each on half of them for 300 Adam steps of 64, and scores all records.
"""

import argparse
import gzip
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim.audit.attacks import ATTACKS, choose
from fedsim.audit.centralised_proxy import CentralisedProxy
from fedsim.audit.roc import auc
from fedsim.audit.scores import fair_coins
from fedsim.audit.shadow_scores import score_shadows
from fedsim.config import Data, Model
from fedsim.data.encode import encode_labels, encode_tokens, make_vocabulary, tokenize
from fedsim.models import build_model
from fedsim.types import Spec

RECORDS = 5000
LENGTH = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=os.environ.get("FEDSIM_DATA"))
    parser.add_argument("--models", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    proxy = trainer(Path(options.data_dir))
    print(f"{torch.get_num_threads()} thread(s), {options.at_once} models at once")
    print(
        "| models | train and score, s | s a model | attack | AUC | attack, s | peak memory, MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for models in options.models:
        print(row(proxy, models, options.at_once), flush=True)


def trainer(data_dir: Path) -> CentralisedProxy:
    with gzip.open(
        data_dir / "snips" / "slotgated_train.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        rows = list({row["text"]: row for row in map(json.loads, lines)}.values())[:RECORDS]
    texts = [tokenize(row["text"]) for row in rows]
    vocabulary = make_vocabulary(Data(), texts)
    names = sorted({row["intent"] for row in rows})
    spec = Spec("classification", vocabulary.size, labels=tuple(names), length=LENGTH)

    def make(seed: int) -> nn.Module:
        return build_model(spec, Model(name="bag", embedding=64), seed)

    labels = encode_labels([row["intent"] for row in rows], names)
    tokens = encode_tokens(vocabulary, texts, LENGTH)
    return CentralisedProxy(
        make, tokens, labels, steps=300, batch=64, lr=0.01, logits=lambda outputs: outputs["label"]
    )


def row(proxy: CentralisedProxy, models: int, at_once: int) -> str:
    start = time.perf_counter()
    scores = score_shadows(fair_coins(models, RECORDS, 1), proxy.labels, proxy, at_once)
    trained = time.perf_counter() - start
    start = time.perf_counter()
    name = choose(models - 2)
    targets = [scores.target(model) for model in range(4)]
    area = np.mean([auc(ATTACKS[name](target), target.member) for target in targets])
    attacked = (time.perf_counter() - start) / 4
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cells = (
        models,
        f"{trained:.1f}",
        f"{trained / models:.2f}",
        name,
        f"{area:.3f}",
        f"{attacked:.3f}",
    )
    return "| " + " | ".join(map(str, cells)) + f" | {peak:.0f} |"


if __name__ == "__main__":
    main()
