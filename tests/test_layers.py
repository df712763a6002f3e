"""Stacked layers against torch's own, one model at a time, in float64; padded against unpadded."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.config import Model
from fedsim.models import build_model
from fedsim.models.dropout import Dropout, set_dropout_keys
from fedsim.models.layers import Attention, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, pool
from fedsim.models.recurrent import LSTM, BiLSTM
from fedsim.models.tasks import make_task
from fedsim.types import PAD, Params, Spec

K = 3
B = 4
T = 5
CLOSE = {"rtol": 0.0, "atol": 1e-10}


def random_params(layer: nn.Module) -> Params:
    """Weights [K, ...] of K different models."""
    return {
        name: torch.randn(K, *p.shape, dtype=torch.float64, requires_grad=True) / 2
        for name, p in layer.named_parameters()
    }


def assert_stacked(
    ours: nn.Module, theirs: Callable[[Params, Tensor], Tensor], x: Tensor, *more: Tensor
):
    """Compare outputs, input and weight gradients of K stacked models with K single ones."""
    params = {n: p.detach().requires_grad_() for n, p in random_params(ours).items()}
    x = x.detach().requires_grad_(x.is_floating_point())
    stacked = functional_call(ours, params, (x, *more))
    pull = torch.randn_like(stacked)
    leaves = [*params.values(), *([x] if x.requires_grad else [])]
    grads = torch.autograd.grad((stacked * pull).sum(), leaves)
    for k in range(K):
        single = {n: p[k].detach().requires_grad_() for n, p in params.items()}
        alone = x[k].detach().requires_grad_(x.is_floating_point())
        out = theirs(single, alone)
        torch.testing.assert_close(stacked[k], out, **CLOSE)
        one = [*single.values(), *([alone] if alone.requires_grad else [])]
        for fast, slow in zip(grads, torch.autograd.grad((out * pull[k]).sum(), one), strict=True):
            torch.testing.assert_close(fast[k], slow, **CLOSE)
        again = functional_call(ours, single, (alone, *(m[k] for m in more)))
        torch.testing.assert_close(again, out, **CLOSE)


def everywhere(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def torch_lstm(inputs: int, hidden: int, bidirectional: bool) -> Callable[[Params, Tensor], Tensor]:
    theirs = nn.LSTM(inputs, hidden, batch_first=True, bidirectional=bidirectional).double()

    def run(p: Params, x: Tensor) -> Tensor:
        weights = {}
        for d, end in enumerate(("", "_reverse") if bidirectional else ("",)):
            for name, into in (("weight_input", "weight_ih_l0"), ("weight_hidden", "weight_hh_l0")):
                weights[into + end] = p[name][d] if bidirectional else p[name]
            bias = p["bias"][d] if bidirectional else p["bias"]
            weights |= {f"bias_ih_l0{end}": bias, f"bias_hh_l0{end}": torch.zeros_like(bias)}
        return functional_call(theirs, weights, (x,))[0]

    return run


def test_stacked_lstms_are_separate_torch_lstms():
    torch.manual_seed(1)
    assert_stacked(
        LSTM(6, 7), torch_lstm(6, 7, False), torch.randn(K, B, T, 6).double(), everywhere(K, B, T)
    )


def test_stacked_bilstms_are_separate_torch_bilstms():
    torch.manual_seed(2)
    assert_stacked(
        BiLSTM(6, 7), torch_lstm(6, 7, True), torch.randn(K, B, T, 6).double(), everywhere(K, B, T)
    )


@pytest.mark.parametrize("kind", [LSTM, BiLSTM])
def test_torchs_kernel_in_float32_and_our_recurrence_in_float64_agree(
    kind: type[LSTM] | type[BiLSTM],
):
    """On a CPU float32 runs by torch's kernel, one model after another; everything else by the
    recurrence.
    """
    torch.manual_seed(8)
    layer = kind(6, 7)
    x = torch.randn(K, B, T, 6)
    mask = torch.arange(T) < torch.tensor([T, 3, 1, 2]).view(B, 1)
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(9)
        params = {n: p.detach().to(dtype).requires_grad_() for n, p in random_params(layer).items()}
        given = x.to(dtype).requires_grad_()
        out = functional_call(layer, params, (given, mask.expand(K, B, T)))
        pull = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
        found.append([out, *torch.autograd.grad((out * pull).sum(), [given, *params.values()])])
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (2, 2)])
def test_pooling_and_its_gradient_are_torchs(size: tuple[int, int]):
    torch.manual_seed(10)
    x = torch.randn(K, B, 3, *size).double().requires_grad_()
    ours = pool(x)
    theirs = nn.functional.max_pool2d(x.flatten(0, 2), 2).view(K, B, 3, size[0] // 2, -1)
    assert torch.equal(ours, theirs)
    pull = torch.randn_like(ours)
    of_ours, of_theirs = (torch.autograd.grad(y, x, pull)[0] for y in (ours, theirs))
    assert torch.equal(of_ours, of_theirs)


def test_of_like_values_in_a_square_one_gets_the_whole_gradient():
    x = torch.zeros(1, 1, 2, 4, requires_grad=True)
    pool(x).backward(torch.tensor([[[[3.0, 5.0]]]]))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [3.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_stacked_layer_norms_are_separate_torch_layer_norms():
    torch.manual_seed(3)
    theirs = nn.LayerNorm(6).double()
    x = torch.randn(K, B, T, 6).double()
    assert_stacked(LayerNorm(6), lambda p, x: functional_call(theirs, p, (x,)), x)


def test_stacked_group_norms_are_separate_torch_group_norms():
    torch.manual_seed(4)
    theirs = nn.GroupNorm(2, 6).double()
    x = torch.randn(K, B, 6, 5, 4).double()
    assert_stacked(GroupNorm(2, 6), lambda p, x: functional_call(theirs, p, (x,)), x)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (2, 1, 1)])
def test_stacked_convolutions_are_separate_torch_convolutions(
    kernel: int, stride: int, padding: int
):
    torch.manual_seed(5)
    theirs = nn.Conv2d(2, 4, kernel, stride, padding).double()
    x = torch.randn(K, B, 2, 7, 6).double()
    ours = Conv2d(2, 4, kernel, stride, padding)
    assert_stacked(ours, lambda p, x: functional_call(theirs, p, (x,)), x)


def test_stacked_linears_and_embeddings_are_separate_torch_ones():
    torch.manual_seed(6)
    linear = nn.Linear(6, 4).double()
    table = nn.Embedding(9, 4).double()
    x = torch.randn(K, B, T, 6).double()
    ids = torch.randint(9, (K, B, T))
    assert_stacked(Linear(6, 4), lambda p, x: functional_call(linear, p, (x,)), x)
    assert_stacked(Embedding(9, 4), lambda p, x: functional_call(table, p, (x,)), ids)


def test_stacked_attention_is_separate_torch_multi_head_attention():
    torch.manual_seed(7)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    causal = torch.ones(T, T, dtype=torch.bool).tril()

    def run(p: Params, x: Tensor) -> Tensor:
        weights = {
            "in_proj_weight": p["query_key_value.weight"],
            "in_proj_bias": p["query_key_value.bias"],
            "out_proj.weight": p["output.weight"],
            "out_proj.bias": p["output.bias"],
        }
        return functional_call(theirs, weights, (x, x, x), {"attn_mask": ~causal})[0]

    x = torch.randn(K, B, T, 8).double()
    assert_stacked(Attention(8, 2), run, x, causal.expand(K, 1, T, T))


TEXT = {
    "intent_slots": Spec("intent_slots", 12, labels=("a", "b"), tags=("O", "B-x", "I-x"), length=9),
    "classification": Spec("classification", 12, labels=("a", "b"), length=9),
    "tagging": Spec("tagging", 12, tags=("O", "B-x", "I-x"), length=9),
    "language": Spec("language", 12, length=9),
}
PAIRS = [
    *(
        (name, task)
        for name in ("bag", "bilstm", "transformer")
        for task in TEXT
        if task != "language"
    ),
    ("lstm", "language"),
    ("transformer", "language"),
]
SMALL = {"embedding": 8, "hidden": 6, "layers": 2, "heads": 2}


def text_batch(spec: Spec, *lead: int) -> dict[str, Tensor]:
    """Sentences of 1 to 6 tokens with all fields that a task may read."""
    lengths = torch.arange(lead[-1]) % 6 + 1
    there = torch.arange(6) < lengths.unsqueeze(-1)
    tokens = torch.where(there, torch.randint(2, spec.vocabulary, (*lead, 6)), PAD)
    follow = torch.cat([tokens[..., 1:], torch.zeros_like(tokens[..., :1])], -1)
    return {
        "tokens": tokens,
        "next": follow,
        "label": torch.randint(2, lead),
        "tags": torch.where(there, torch.randint(3, (*lead, 6)), -1),
    }


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_stacked_text_model_is_its_models_one_by_one(name: str, task: str):
    torch.manual_seed(8)
    spec = TEXT[task]
    assert_stacked_model(name, spec, text_batch(spec, K, B))


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_a_stacked_image_model_is_its_models_one_by_one(name: str):
    torch.manual_seed(9)
    spec = Spec("image", labels=("a", "b", "c"), image=(1, 9, 8))
    assert_stacked_model(
        name, spec, {"image": torch.rand(K, B, 1, 9, 8).double(), "label": torch.randint(3, (K, B))}
    )


def assert_stacked_model(name: str, spec: Spec, batch: dict[str, Tensor]):
    module = build_model(spec, Model(name=name, **SMALL), seed=1).double()
    task = make_task(spec)
    params = {n: p.detach().requires_grad_() for n, p in random_params(module).items()}
    losses = losses_of(module, task, params, batch)
    grads = torch.autograd.grad(losses.sum(), list(params.values()))
    for k in range(K):
        single = {n: p[k].detach().requires_grad_() for n, p in params.items()}
        alone = losses_of(module, task, single, {n: f[k] for n, f in batch.items()})
        torch.testing.assert_close(losses[k], alone, **CLOSE)
        slow = torch.autograd.grad(alone.sum(), list(single.values()))
        for a, b in zip(grads, slow, strict=True):
            torch.testing.assert_close(a[k], b, **CLOSE)


def losses_of(module: nn.Module, task, params: Params, batch: dict[str, Tensor]) -> Tensor:
    return task.losses(functional_call(module, params, tuple(batch[n] for n in task.inputs)), batch)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_neither_padding_nor_neighbours_change_an_examples_loss(name: str, task: str):
    torch.manual_seed(10)
    spec = TEXT[task]
    module = build_model(spec, Model(name=name, **SMALL), seed=1).double()
    kind = make_task(spec)
    params = dict(module.named_parameters())
    batch = text_batch(spec, B)
    together = losses_of(module, kind, params, batch)
    for b in range(B):
        length = int((batch["tokens"][b] != PAD).sum())
        bare = {
            n: f[b : b + 1] if n == "label" else f[b : b + 1, :length] for n, f in batch.items()
        }
        torch.testing.assert_close(losses_of(module, kind, params, bare)[0], together[b], **CLOSE)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_a_language_model_does_not_look_ahead(name: str):
    torch.manual_seed(11)
    spec = TEXT["language"]
    module = build_model(spec, Model(name=name, **SMALL), seed=1).double()
    tokens = torch.randint(2, 12, (1, 6))
    other = tokens.clone()
    other[0, 4:] = (tokens[0, 4:] - 1) % 10 + 2
    before = module(tokens)["next"][0]
    after = module(other)["next"][0]
    torch.testing.assert_close(before[:4], after[:4], **CLOSE)
    assert not torch.allclose(before[4:], after[4:])


def test_no_dropout_is_used_twice_in_a_step():
    torch.manual_seed(12)
    image = Spec("image", labels=("a",), image=(1, 8, 8))
    for name, spec in [(n, TEXT[t]) for n, t in PAIRS] + [("mlp", image), ("cnn", image)]:
        module = build_model(spec, Model(name=name, dropout=0.5, **SMALL), seed=1)
        calls: list[nn.Module] = []
        for layer in module.modules():
            if isinstance(layer, Dropout):
                layer.register_forward_hook(lambda layer, *_, seen=calls: seen.append(layer))
        set_dropout_keys(module, torch.arange(K), step=0)
        inputs = (
            text_batch(spec, K, B)["tokens"] if spec is not image else torch.rand(K, B, 1, 8, 8)
        )
        functional_call(module, stack(module), (inputs,))
        assert len(calls) == len(set(calls)) > 0


def stack(module: nn.Module) -> Params:
    return {name: p.expand(K, *p.shape) for name, p in module.named_parameters()}


def test_an_empty_text_gives_finite_outputs():
    spec = TEXT["intent_slots"]
    for name in ("bag", "bilstm", "transformer"):
        module = build_model(spec, Model(name=name, **SMALL), seed=1)
        out = module(torch.full((2, 3), PAD))
        assert all(bool(o.isfinite().all()) for o in out.values())
