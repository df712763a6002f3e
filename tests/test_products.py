"""Products of many models side by side: by oneDNN and by torch's own kernel they are those of
float64.

Seen to fail: sums without the factors, `add_product` without its base, oneDNN asked whatever the
size, under vmap or under autocast, a bias left out, the gradient of the weights doubled, that of
the input by another model's weights.
"""

import pytest
import torch
from torch import Tensor

from fedsim.models import products
from fedsim.models.layers import linear
from fedsim.models.products import add_product, outer, product, sum_of_products

MODELS = 3
TIME = 4
EXAMPLES = 5
INPUTS = 7
OUTPUTS = 6


@pytest.fixture(params=[0, 1 << 60], ids=["onednn", "torch"])
def least(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST", request.param)


def made(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.usefixtures("least")
def test_a_product_is_written_to_any_strides() -> None:
    x = made(TIME, MODELS, EXAMPLES, INPUTS + 2)
    wide = made(MODELS, OUTPUTS, INPUTS + 2)
    x = x[..., 2:].transpose(0, 1)
    weight = wide[..., 2:]
    out = torch.empty(TIME, MODELS, EXAMPLES, OUTPUTS).transpose(0, 1)
    expected = torch.einsum("mtbi,moi->mtbo", x.double(), weight.double())
    torch.testing.assert_close(product(x, weight, out).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize("here", [True, False])
def test_a_product_is_added_to_its_base(here: bool) -> None:
    base = made(MODELS, EXAMPLES, OUTPUTS)
    x = made(MODELS, EXAMPLES, INPUTS)
    weight = made(MODELS, INPUTS, OUTPUTS).transpose(1, 2)
    expected = base.double() + torch.einsum("mbi,moi->mbo", x.double(), weight.double())
    out = add_product(base, x, weight, out=base if here else torch.empty_like(base))
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("least")
def test_a_sum_of_products_weighs_each_example() -> None:
    g = made(TIME, MODELS, EXAMPLES, OUTPUTS).transpose(0, 1)
    a = made(TIME, MODELS, EXAMPLES, INPUTS).transpose(0, 1)
    factors = made(MODELS, EXAMPLES)
    expected = torch.einsum("mtbo,mb,mtbi->moi", g.double(), factors.double(), a.double())
    found = sum_of_products(g, a, factors)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize("models", [0, 1, MODELS])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients_are_those_of_float64(models: int, bias: bool) -> None:
    stack = [models] if models else []
    given = [made(*stack, EXAMPLES, TIME, INPUTS), made(*stack, OUTPUTS, INPUTS)]
    given += [made(*stack, OUTPUTS)] if bias else []
    weights = made(*stack, EXAMPLES, TIME, OUTPUTS)

    def run(x: Tensor, weight: Tensor, b: Tensor | None = None) -> Tensor:
        return linear(x, weight, b)

    def slow(x: Tensor, weight: Tensor, b: Tensor | None = None) -> Tensor:
        out = torch.einsum("...bti,...oi->...bto", x, weight)
        return out if b is None else out + (b.view(models, 1, 1, -1) if models else b)

    found, expected = (
        [out.detach(), *torch.autograd.grad((out * weights.to(out)).sum(), leaves)]
        for function, dtype in ((run, torch.float32), (slow, torch.float64))
        for leaves in [[x.to(dtype).requires_grad_() for x in given]]
        for out in [function(*leaves)]
    )
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("least")
def test_an_outer_product_sums_over_rows() -> None:
    g = made(MODELS, EXAMPLES, OUTPUTS)
    a = made(MODELS, EXAMPLES, INPUTS)
    expected = torch.einsum("mro,mri->moi", g.double(), a.double())
    torch.testing.assert_close(outer(g, a).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("least")
def test_vmap_and_autocast_see_torch_s_own_products() -> None:
    x = made(EXAMPLES, TIME, INPUTS)
    weight = made(OUTPUTS, INPUTS)
    each = torch.func.vmap(
        torch.func.grad(lambda w, one: linear(one, w, None).square().sum()), (None, 0)
    )
    torch.testing.assert_close(each(weight, x), 2 * torch.einsum("bto,bti->boi", x @ weight.t(), x))
    one = torch.func.grad(lambda w: linear(x, w, None).square().sum())(
        weight
    )  # x itself is not traced
    torch.testing.assert_close(one, 2 * torch.einsum("bto,bti->oi", x @ weight.t(), x))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, None).dtype == torch.bfloat16


def test_this_torch_has_the_products_that_are_tested_here() -> None:
    assert products.ONEDNN or not torch.backends.mkldnn.is_available(), (
        "the op has another name now"
    )


def test_only_large_products_in_float32_are_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(x: Tensor, weight: Tensor, bias: None = None) -> Tensor:
        asked.append((x.dtype, len(x)))
        return x @ weight.t()

    monkeypatch.setattr(products, "_by_onednn", note)
    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for dtype in (torch.float32, torch.float64):
        for rows in (2, 300):
            x = made(2, 1, rows, 64).to(dtype)
            weight = made(2, 256, 64).to(dtype)
            product(x, weight, x.new_empty(2, 1, rows, 256))
    assert asked == [(torch.float32, 300)] * 2
