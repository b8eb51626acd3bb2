"""Frozen linear layers in 8 and 4 bits: how near they are, what they cost, and that gradients go through them."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lorapod.engine.fused_lora import FusedLinear
from lorapod.engine.quantised import Codes, QuantisedLinear, put_weight, quantise, widened
from lorapod.recipe.choices import Quantization

KINDS = [Quantization.FP8, Quantization.INT8, Quantization.NF4]


def weight(rows: int = 48, columns: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    value[5] = 0
    return value


def back(codes: Codes) -> torch.Tensor:
    return widened(codes.values, codes.scales, codes.shape, torch.float32)


def layer(kind: Quantization, dtype: torch.dtype = torch.float32) -> QuantisedLinear:
    return QuantisedLinear(quantise(weight().to(dtype), kind), torch.linspace(-1, 1, 48, dtype=dtype), kind, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_is_as_near_as_the_format_promises(kind: Quantization) -> None:
    value = weight()
    error, largest = (back(quantise(value, kind)) - value).abs(), value.abs().amax(1, keepdim=True)
    if kind is Quantization.INT8:
        assert (error <= largest / 127 / 2 * 1.001).all()
    elif kind is Quantization.FP8:  # three bits behind the leading one; below the smallest exponent steps are equal
        assert (error <= torch.maximum(value.abs() / 16, largest / 448 * 2**-10) * 1.001).all()
    else:
        blocks = value.view(-1, 64)
        bound = 0.1520 * blocks.abs().amax(1, keepdim=True)
        assert (error.view(-1, 64) <= bound).all()
    assert (back(quantise(value, kind))[5] == 0).all()


def test_int8_is_the_nearest_and_nf4_the_furthest() -> None:
    def off(kind: Quantization) -> float:
        return float((back(quantise(weight(), kind)) - weight()).norm() / weight().norm())

    assert off(Quantization.INT8) < off(Quantization.FP8) < off(Quantization.NF4) < 0.12


@pytest.mark.parametrize(("kind", "bits"), [("fp8", 8), ("int8", 8), ("nf4", 4)])
def test_it_takes_the_bytes_that_it_promises(kind: str, bits: int) -> None:
    codes = quantise(weight(), Quantization(kind))
    scales = 48 * 4 if bits == 8 else 48 * 128 // 64 * 4
    assert codes.bytes == 48 * 128 * bits // 8 + scales
    held = sum(parameter.nbytes for parameter in layer(Quantization(kind)).parameters())
    assert held == codes.bytes + 48 * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapted", [False, True])
def test_output_and_gradients_are_those_of_the_weight_that_it_stands_for(kind: Quantization, adapted: bool) -> None:
    """A plain layer of that weight, with the same adapter, is the independent computation."""
    torch.manual_seed(0)
    held = layer(kind)
    plain = nn.Linear(128, 48)
    plain.load_state_dict({"weight": held.weight, "bias": held.bias})
    models = [nn.Sequential(held), nn.Sequential(plain)]
    if adapted:
        for model in models:
            torch.manual_seed(2)
            config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
            config._register_custom_module({nn.Linear: FusedLinear})
            inject_adapter_in_model(config, model)
    results = []
    for model in models:
        x = torch.linspace(-1, 1, 3 * 5 * 128).view(3, 5, 128).requires_grad_()
        y = model(x)
        (y**2).sum().backward()
        trained = [p.grad for name, p in model.named_parameters() if "lora_" in name]
        assert len(trained) == (2 if adapted else 0)
        results.append([y.detach(), x.grad, *trained])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert all(p.grad is None for p in held.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_no_wide_copy_waits_for_the_backward_pass(kind: Quantization) -> None:
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes if tensor.data_ptr() not in own else 0)
        return tensor

    model = layer(kind)
    own = {p.data_ptr() for p in model.parameters()}
    x = torch.randn(2, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x).sum()
    assert sum(kept) < 48 * 128


@pytest.mark.parametrize("kind", KINDS)
def test_another_weight_can_be_put_in(kind: Quantization) -> None:
    held = layer(kind)
    put_weight(held, 3 * weight())
    assert torch.equal(held.weight, back(quantise(3 * weight(), kind)))


def test_it_computes_in_the_type_of_its_model() -> None:
    held = layer(Quantization.INT8, torch.bfloat16)
    x = torch.randn(4, 128)
    y = held(x)
    assert y.dtype is torch.bfloat16
    exact = nn.functional.linear(x, held.weight.float(), held.bias.float())
    assert ((y.float() - exact).norm() / exact.norm()) < 0.01
