"""Keys and values of slots of which only the last get gradients, against one plain product."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamlm.models.layers import products
from streamlm.models.layers.constant_slots import project_slots
from streamlm.models.layers.products import times_transposed

B, N, T, W, H, E = 2, 5, 3, 6, 2, 4


def tensors(dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = (B, N, W), (B, T, W), (2 * H * E, W), (2 * H * E,)
    return [torch.randn(*shape, generator=random, dtype=dtype) for shape in shapes]


def plain(past: Tensor, new: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    both = F.linear(torch.cat([past, new], dim=1), weight, bias).unflatten(2, (2, H, E))
    return both.permute(2, 0, 3, 1, 4).unbind(0)


def gradients(pair: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    key, value = pair
    return list(torch.autograd.grad((key.sin() * value.cos()).sum(), leaves))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_pairs_and_gradients(columns: bool, constant: bool, biased: bool) -> None:
    past, new, weight, bias = tensors(torch.float64)
    leaves = [new, weight, *([bias] if biased else []), *([] if constant else [past])]
    for leaf in leaves:
        leaf.requires_grad_()
    own_bias = bias if biased else None
    found = project_slots(past, new, weight, own_bias, n_heads=H, columns=columns)
    wanted = plain(past, new, weight, own_bias)
    assert (found[0].stride(2) == 1) == columns
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        gradients(found, leaves), gradients(wanted, leaves), rtol=0, atol=1e-12
    )


def test_products_are_in_bfloat16_under_autocast() -> None:
    past, new, weight, bias = tensors(torch.float32)
    leaves = [leaf.requires_grad_() for leaf in (new, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = project_slots(past, new, weight, bias, n_heads=H)
    assert {each.dtype for each in found} == {torch.bfloat16}
    of_found = gradients(found, leaves)
    assert {each.dtype for each in of_found} == {torch.float32}
    wanted = gradients(plain(past, new, weight, bias), leaves)
    for own, other in zip(of_found, wanted, strict=True):
        assert float((own - other).norm()) < 0.1 * float(other.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("faster", [False, products.AVAILABLE])
def test_products_with_a_transposed_matrix(
    dtype: torch.dtype, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "FASTER", faster)
    monkeypatch.setattr(products, "LEAST", 0)
    random = torch.Generator().manual_seed(1)
    left, right = (torch.randn(n, 40, generator=random).to(dtype) for n in (30, 50))
    wanted, scale = left.double() @ right.double().mT, 8 * torch.finfo(dtype).eps
    for found in (
        times_transposed(left, right),
        times_transposed(left.mT.contiguous().mT, right.mT.contiguous().mT),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=20 * scale)
