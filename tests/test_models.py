"""Models with a leading device axis equal single ones; dropout depends on names alone."""

from itertools import permutations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models import MODELS, build_model, parameters_of
from fedsim.models.dropout import Dropout, set_dropout_keys
from fedsim.models.recurrent import BiLSTM
from fedsim.models.word_order import in_order
from fedsim.types import Spec

TEXT = Spec("intent_slots", 30, labels=("a", "b", "c"), tags=("O", "B-x", "I-x"))
LABELS = Spec("classification", 30, labels=("a b", "b", "c"), label_tokens=((4, 9), (9,), ()))
IMAGE = Spec("image", labels=("a", "b"), image=(1, 4, 5))


def build(name: str, spec: Spec, dropout: float = 0.0) -> nn.Module:
    settings = Model(name=name, embedding=6, hidden=5, layers=2, dropout=dropout)
    return build_model(spec, settings, seed=1).double()


def inputs(spec: Spec, models: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if spec.task == "image":
        return torch.rand(models, 4, *spec.image, generator=generator).double()
    tokens = torch.randint(2, 30, (models, 4, 7), generator=generator)
    tokens[:, 1, 3:] = 0
    tokens[:, 2, :] = 0  # an example without any token
    return tokens


def stacked(module: nn.Module, models: int) -> dict[str, torch.Tensor]:
    return {
        n: torch.stack([p * (1 + k) for k in range(models)]) for n, p in module.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "spec"), [("bag", TEXT), ("bilstm", TEXT), ("projection", LABELS), ("mlp", IMAGE)]
)
def test_stacked_models_equal_single_ones_in_output_and_gradient(name: str, spec: Spec) -> None:
    module = build(name, spec)
    x = inputs(spec, 3)
    leaves = {n: p.detach().requires_grad_() for n, p in stacked(module, 3).items()}
    together = functional_call(module, leaves, (x,))
    grads = torch.autograd.grad(
        sum(o.square().sum() for o in together.values()), list(leaves.values())
    )
    for k in range(3):
        alone = {n: p[k].detach().requires_grad_() for n, p in leaves.items()}
        outputs = functional_call(module, alone, (x[k],))
        for field, output in outputs.items():
            torch.testing.assert_close(together[field][k], output)
        single = torch.autograd.grad(
            sum(o.square().sum() for o in outputs.values()), list(alone.values())
        )
        for all_models, one in zip(grads, single, strict=True):
            torch.testing.assert_close(all_models[k], one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["bag", "bilstm"])
def test_padding_changes_nothing(name: str) -> None:
    module = build(name, TEXT)
    x = inputs(TEXT, 1)[0]
    short = module(x)
    long = module(nn.functional.pad(x, (0, 4)))
    torch.testing.assert_close(short["label"], long["label"])
    at_tokens = x != 0
    torch.testing.assert_close(short["tags"][at_tokens], long["tags"][:, :7][at_tokens])


def test_the_bilstm_is_torch_s() -> None:
    ours = BiLSTM(4, 3).double()
    theirs = nn.LSTM(4, 3, bidirectional=True, batch_first=True).double()
    with torch.no_grad():
        for d, suffix in enumerate(("", "_reverse")):
            getattr(theirs, f"weight_ih_l0{suffix}").copy_(ours.weight_input[d])
            getattr(theirs, f"weight_hh_l0{suffix}").copy_(ours.weight_hidden[d])
            getattr(theirs, f"bias_ih_l0{suffix}").copy_(ours.bias[d])
            getattr(theirs, f"bias_hh_l0{suffix}").zero_()
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    lengths = torch.tensor([6, 3])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(x, torch.arange(6) < lengths[:, None]), expected)


def test_the_first_parameters_come_from_the_seed() -> None:
    torch.manual_seed(99)
    one = parameters_of(build("bag", TEXT))
    torch.manual_seed(98)
    again = parameters_of(build("bag", TEXT))
    other = parameters_of(build_model(TEXT, Model(embedding=6), seed=2))
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"].double())


def dropped(keys: list[int], shape: tuple[int, ...], p: float = 0.3) -> torch.Tensor:
    layer = Dropout(p)
    layer.keys = torch.tensor(keys)
    return layer(torch.ones(len(keys), *shape))


def test_dropout_drops_the_stated_share_and_keeps_the_mean() -> None:
    out = dropped(list(range(8)), (10, 20, 32))
    n = out.numel()
    # 5 standard errors: a false alarm in 6 of 10 million keys
    assert abs(float((out == 0).double().mean()) - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5
    assert float(out.max()) == pytest.approx(1 / 0.7)


def test_a_device_s_dropout_depends_neither_on_neighbours_nor_on_padding() -> None:
    alone = dropped([5], (3, 4, 6))
    packed = dropped([1, 5, 9], (3, 9, 6))
    assert torch.equal(alone[0], packed[1, :, :4])
    assert not torch.equal(packed[0], packed[1])


def test_steps_and_layers_have_masks_of_their_own() -> None:
    module = build("bilstm", TEXT, dropout=0.5)
    layers = [m for m in module.modules() if isinstance(m, Dropout)]
    set_dropout_keys(module, torch.tensor([7]), step=0)
    first = [int(layer.keys[0]) for layer in layers]
    set_dropout_keys(module, torch.tensor([7]), step=1)
    second = [int(layer.keys[0]) for layer in layers]
    assert len(set(first + second)) == 2 * len(layers)


def test_batchnorm_is_refused_by_name() -> None:
    with pytest.raises(WrongInput, match=r"layer '1' is a BatchNorm1d, which mixes the examples"):
        build_model(IMAGE, Model(name=f"{__name__}:normed"), 1)


def normed(spec: Spec, model: Model) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(20), nn.Linear(20, 2))


def test_a_text_model_is_refused_for_images() -> None:
    with pytest.raises(WrongInput, match="'bag' serves intent_slots"):
        build_model(IMAGE, Model(name="bag"), 1)


def projection(scale: float, spec: Spec = LABELS, seed: int = 1) -> nn.Module:
    return build_model(spec, Model(name="projection", embedding=64, label_names=scale), seed)


def test_the_projection_is_frozen_and_the_same_for_every_seed() -> None:
    one = projection(0.0)
    other = projection(0.0, seed=2)
    assert list(parameters_of(one)) == ["label.weight"]
    assert torch.equal(one.table, other.table)
    assert "table" not in one.state_dict()
    table = one.table.clone()
    torch.optim.SGD(one.parameters(), lr=1.0).zero_grad()
    one(inputs(LABELS, 1)[0])["label"].square().sum().backward()
    assert torch.equal(one.table, table)


def test_the_projection_s_features_have_norm_one_whatever_the_text() -> None:
    module = projection(0.0)
    tokens = inputs(LABELS, 1)[0]
    features = module.features(tokens)
    expected = module.table[tokens] * (tokens != 0).unsqueeze(-1)
    torch.testing.assert_close(features, nn.functional.normalize(expected.sum(1), dim=-1))
    torch.testing.assert_close(features.norm(dim=-1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(features, module.features(nn.functional.pad(tokens, (0, 4))))


def test_a_label_starts_from_the_words_of_its_name() -> None:
    module = projection(10.0)
    torch.testing.assert_close(module.label.weight[1], 10.0 * module.table[9] / 8)
    assert not module.label.weight[2].any()
    assert module(torch.tensor([[9, 0, 0]]))["label"].argmax() == 1
    assert not projection(0.0).label.weight.any()


def test_a_start_from_names_needs_hashed_words() -> None:
    with pytest.raises(WrongInput, match=r'set data\.vocabulary = "hashed"'):
        projection(1.0, Spec("classification", 30, labels=("a", "b")))


READING = [
    (name, task, letters)
    for name, kind in MODELS.items()
    for task in kind.tasks
    if kind.reads is not in_order
    for letters in ("abc", "abcabd")
]


@pytest.mark.parametrize(("name", "task", "letters"), READING)
def test_texts_that_a_model_is_said_to_read_alike_give_the_same_outputs(
    name: str, task: str, letters: str
) -> None:
    """What refuses canaries that cannot be told apart.

    Seen to fail: `reads=as_bag` for the bilstm.
    """
    spec = Spec(
        task,
        30,
        labels=("a", "b") if task != "tagging" else (),
        tags=("O", "B-x") if task != "classification" else (),
    )
    ids = [ord(letter) - 90 for letter in letters]
    reads = MODELS[name].reads
    alike = {tuple(p) for p in permutations(ids) if reads(list(p), spec) == reads(ids, spec)}
    assert tuple(ids) in alike
    module = build(name, spec).eval()
    found = [module(torch.tensor([p])) for p in sorted(alike)]
    for field, output in found[0].items():
        for other in found[1:]:
            rows = [o.flatten(0, -2).sort(0).values for o in (output, other[field])]
            torch.testing.assert_close(*rows)
