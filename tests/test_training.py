"""Stacked local training equals the obvious slow loop, however devices are packed."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clients.batches import count_steps, make_schedule
from clients.packing import plan_chunks
from clients.stacked_model import is_stackable
from clients.training import Assignment, Trainer
from fedsim.config import Model, Train
from fedsim.models import build_model, parameters_of
from fedsim.models.dropout import Dropout
from fedsim.models.layers import Embedding, Linear
from fedsim.models.tasks import make_task
from fedsim.seeds import generator
from fedsim.types import Examples, Params, Spec

TEXT = Spec("intent_slots", 40, labels=("a", "b", "c"), tags=("O", "B-x", "I-x"))
SIZES = [1, 23, 7, 10, 11, 4]
OPTIMIZERS = [
    {"optimizer": "sgd", "lr": 0.5},
    {"optimizer": "sgd", "lr": 0.3, "momentum": 0.9},
    {"optimizer": "sgd", "lr": 0.3, "weight_decay": 0.01},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


def examples(n: int, seed: int, width: int = 6) -> Examples:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 40, (n, width), generator=g)
    lengths = torch.randint(1, width + 1, (n, 1), generator=g)
    beyond = torch.arange(width) >= lengths
    tags = torch.randint(0, 3, (n, width), generator=g)
    label = torch.randint(0, 3, (n,), generator=g)
    return Examples(
        {
            "tokens": tokens.masked_fill(beyond, 0),
            "label": label,
            "tags": tags.masked_fill(beyond, -1),
        }
    )


def assignments(sizes: list[int] = SIZES) -> list[Assignment]:
    return [Assignment(f"d{i}", examples(n, i), weight=1.0 + i) for i, n in enumerate(sizes)]


def build(name: str = "bag", dropout: float = 0.0) -> nn.Module:
    model = Model(name="bag" if name == "mean" else name, embedding=5, hidden=4, dropout=dropout)
    return build_model(spec_of(name), model, seed=1).double()


def spec_of(name: str) -> Spec:
    """Return labels and tags; labels alone for `mean`, a bag that keeps no word."""
    return replace(TEXT, task="classification", tags=()) if name == "mean" else TEXT


def double(params: Params) -> Params:
    return {name: p.double() for name, p in params.items()}


def slow_delta(
    module: nn.Module, a: Assignment, train: Train, seed: int, round: int, spec: Spec = TEXT
) -> Params:
    """One device by torch's own optimiser, one step after another."""
    local = copy.deepcopy(module)
    task = make_task(spec)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    momentum = {"momentum": train.momentum} if train.optimizer == "sgd" else {}
    optimizer = kinds[train.optimizer](
        local.parameters(), lr=train.lr, weight_decay=train.weight_decay, **momentum
    )
    schedule = make_schedule(train, len(a.examples), generator(seed, "batches", round, a.device))
    for rows, mask in zip(schedule.rows, schedule.mask, strict=True):
        batch = a.examples[torch.from_numpy(rows[mask])].fields
        optimizer.zero_grad()
        task.losses(local(batch["tokens"]), batch).mean().backward()
        optimizer.step()
    before = dict(module.named_parameters())
    return {n: (p - before[n]).detach() * a.weight for n, p in local.named_parameters()}


@pytest.mark.parametrize("name", ["bag", "mean", "bilstm"])
@pytest.mark.parametrize("settings", OPTIMIZERS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_stacked_cohort_equals_devices_one_after_another(
    name: str, settings: dict[str, object]
) -> None:
    train = Train.model_validate({"batch_size": 5, "local_epochs": 2} | settings)
    module = build(name)
    update = Trainer(module, make_task(spec_of(name)), train).train(
        double(parameters_of(module)), assignments(), seed=3, round=2
    )
    slow = [slow_delta(module, a, train, 3, 2, spec_of(name)) for a in assignments()]
    for parameter, delta in update.delta.items():
        expected = sum(s[parameter] for s in slow)
        torch.testing.assert_close(delta, expected, rtol=1e-8, atol=1e-10)
    assert update.devices == len(SIZES)
    assert update.weight == sum(a.weight for a in assignments())
    assert update.metrics["steps"] == sum(count_steps(train, n) for n in SIZES)


@pytest.mark.parametrize("name", ["bag", "mean", "bilstm"])
def test_the_sum_depends_neither_on_chunks_nor_on_nodes(name: str) -> None:
    train = Train(batch_size=5, lr=0.5)
    module = build(name, dropout=0.4)
    task = make_task(spec_of(name))
    params = double(parameters_of(module))
    all_devices = assignments()
    whole = Trainer(module, task, train).train(params, all_devices, 1, 1)
    one_by_one = Trainer(module, task, train, memory=0).train(params, all_devices, 1, 1)
    nodes = [Trainer(module, task, train).train(params, all_devices[i::3], 1, 1) for i in (2, 0, 1)]
    for other in (one_by_one, nodes[0] + nodes[1] + nodes[2]):
        assert other.devices == whole.devices
        for parameter in params:
            torch.testing.assert_close(
                other.delta[parameter], whole.delta[parameter], rtol=1e-9, atol=1e-12
            )


def test_changing_one_device_changes_no_other_bitwise() -> None:
    train = Train(batch_size=5, lr=0.5)
    module = build("bag")
    trainer = Trainer(module, make_task(TEXT), train)
    params = parameters_of(module.float())
    ours = [
        a if i != 1 else Assignment(a.device, a.examples, 0.0) for i, a in enumerate(assignments())
    ]
    other = [
        a if i != 1 else Assignment(a.device, examples(23, 77), 0.0) for i, a in enumerate(ours)
    ]
    one = trainer.train(params, ours, 1, 1)
    two = trainer.train(params, other, 1, 1)
    assert all(torch.equal(one.delta[n], two.delta[n]) for n in params)


def test_rows_that_no_device_reads_do_not_move() -> None:
    module = build("bag")
    params = parameters_of(module.float())
    update = Trainer(module, make_task(TEXT), Train(momentum=0.9)).train(
        params, assignments(), 1, 1
    )
    read = torch.cat([a.examples.fields["tokens"].flatten() for a in assignments()]).unique()
    moved = update.delta["embedding.weight"].abs().sum(1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(read.tolist()) - {0}


class Plain(nn.Module):
    """Of torch's own layers: no device axis."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 5)
        self.drop = nn.Dropout(0.5)
        self.label, self.tag = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        words = self.drop(self.words(tokens)) * (tokens != 0).unsqueeze(-1)
        return {"label": self.label(words.sum(1)), "tags": self.tag(words)}


def test_a_model_of_torch_s_own_layers_trains_device_by_device() -> None:
    module = Plain().double()
    train = Train(batch_size=5, lr=0.5)
    module.drop.p = 0.0
    assert not is_stackable(module)
    update = Trainer(module, make_task(TEXT), train).train(
        double(parameters_of(module)), assignments(), 3, 2
    )
    slow = [slow_delta(module, a, train, 3, 2) for a in assignments()]
    for name, delta in update.delta.items():
        torch.testing.assert_close(delta, sum(s[name] for s in slow), rtol=1e-9, atol=1e-12)


class Mixed(nn.Module):
    """Of our layers, with a dropout of torch's (a stream of its own) or of ours."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.words = Embedding(40, 5)
        self.drop = dropout
        self.label, self.tag = Linear(5, 3), Linear(5, 3)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        words = self.drop(self.words(tokens)) * (tokens != 0).unsqueeze(-1)
        return {"label": self.label(words.sum(-2)), "tags": self.tag(words)}


def test_a_parameter_that_forward_does_not_use_stays_as_it_is() -> None:
    module = Mixed(Dropout(0.0))
    module.unused = Linear(2, 2)
    assert is_stackable(module)
    update = Trainer(module, make_task(TEXT), Train()).train(
        parameters_of(module), assignments(), 1, 1
    )
    assert not update.delta["unused.weight"].any()
    assert update.delta["label.weight"].any()


def test_our_dropout_differs_between_examples_where_devices_train_one_by_one() -> None:
    layer = Dropout(0.5)
    layer.keys = torch.tensor([3])
    layer.stacked = False
    rows = layer(torch.ones(5, 64))
    assert len({tuple(row.tolist()) for row in rows}) == 5
    layer.stacked = True
    assert torch.equal(layer(torch.ones(1, 5, 64))[0], rows)


class Functional(nn.Module):
    """Drops by torch's function rather than by a layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


def test_dropout_by_a_function_repeats_with_the_seed() -> None:
    module = Mixed(Functional())
    assert is_stackable(module)
    trainer = Trainer(module, make_task(TEXT), Train())
    params = parameters_of(module)
    torch.manual_seed(1)
    one = trainer.train(params, assignments(), 3, 2)
    torch.manual_seed(2)
    two = trainer.train(params, assignments(), 3, 2)
    assert all(torch.equal(one.delta[name], two.delta[name]) for name in params)


@pytest.mark.parametrize("make", [Plain, lambda: Mixed(nn.Dropout(0.5))], ids=["plain", "mixed"])
def test_its_dropout_depends_on_names_alone(make: Callable[[], nn.Module]) -> None:
    module = make()
    trainer = Trainer(module, make_task(TEXT), Train())
    params = parameters_of(module)
    torch.manual_seed(1)
    one = trainer.train(params, assignments(), 3, 2)
    torch.manual_seed(2)
    two = trainer.train(params, assignments()[::-1], 3, 2)
    for name in params:
        torch.testing.assert_close(one.delta[name], two.delta[name], rtol=1e-9, atol=1e-9)


def test_dropout_acts_in_training_and_rests_in_evaluation() -> None:
    train = Train(batch_size=5, lr=0.5)
    params = parameters_of(build("bag").float())
    deltas = [
        Trainer(build("bag", dropout=p).float(), make_task(TEXT), train).train(
            params, assignments(), 1, 1
        )
        for p in (0.0, 0.5)
    ]
    assert not torch.equal(
        deltas[0].delta["heads.label.weight"], deltas[1].delta["heads.label.weight"]
    )
    module = build("bag", dropout=0.5).eval()
    assert any(isinstance(m, Dropout) for m in module.modules())
    tokens = examples(4, 0).fields["tokens"]
    assert torch.equal(module(tokens)["label"], module(tokens)["label"])


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 3), st.integers(0, 30))
def test_every_epoch_visits_each_example_once(n: int, batch: int, epochs: int, steps: int) -> None:
    train = Train(batch_size=batch, local_epochs=epochs, local_steps=steps)
    schedule = make_schedule(train, n, generator(0, "t"))
    assert len(schedule.rows) == count_steps(train, n)
    seen = schedule.rows[schedule.mask]
    for start in range(0, len(seen) - n + 1, n):
        assert sorted(seen[start : start + n]) == list(range(n))
    assert schedule.mask.any((1, 2)).all()


@given(st.lists(st.integers(1, 1000), max_size=60), st.integers(0, 5000))
def test_chunks_hold_every_device_once_and_stay_within_the_limit(
    costs: list[int], limit: int
) -> None:
    chunks = plan_chunks(costs, limit)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(costs)))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(costs[i] for i in chunk) <= limit


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_workers_side_by_side_give_the_same_sum_and_leave_torch_s_threads_alone(
    dropout: float,
) -> None:
    train = Train(batch_size=5, lr=0.5)
    module = build("bilstm", dropout=dropout)
    task = make_task(TEXT)
    params = double(parameters_of(module))
    threads = torch.get_num_threads()
    alone = Trainer(module, task, train).train(params, assignments(), 1, 1)
    three = [
        Trainer(module, task, train, workers=3).train(params, assignments(), 1, 1) for _ in range(2)
    ]
    assert torch.get_num_threads() == threads
    for name, delta in alone.delta.items():
        torch.testing.assert_close(three[0].delta[name], delta, rtol=1e-9, atol=1e-12)
        assert torch.equal(three[0].delta[name], three[1].delta[name]), (
            "the same plan gives the same bits"
        )


def test_a_model_that_draws_by_itself_is_trained_by_one_worker() -> None:
    """Its masks would come from one stream for all threads, in the order of their haste."""
    assert len(Trainer(build("bag"), make_task(TEXT), Train(), workers=3).lanes) == 3
    module = build("bag")
    module.dropout = Functional()
    assert len(Trainer(module, make_task(TEXT), Train(), workers=3).lanes) == 1


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 50)), min_size=1, max_size=60),
    st.integers(0, 5000),
    st.integers(2, 4),
)
def test_no_chunk_has_more_than_its_share_of_the_steps(
    sizes: list[tuple[int, int]], limit: int, workers: int
) -> None:
    costs = [c for c, _ in sizes]
    steps = [s for _, s in sizes]
    chunks = plan_chunks(costs, limit, steps, workers)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(costs)))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * max(costs[i] for i in chunk) <= limit
        assert len(chunk) == 1 or sum(steps[i] for i in chunk) <= sum(steps) / workers
