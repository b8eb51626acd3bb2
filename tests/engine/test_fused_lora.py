"""The fused LoRA layer against peft's own: the same numbers, and peft's way wherever it would not be the same thing."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import nn

from lorapod.engine.fused_lora import FusedLinear


def layers(dtype: torch.dtype = torch.float32, **settings: object) -> tuple[nn.Module, nn.Module]:
    """The same adapted layer (24 -> 40) twice: fused, and as peft has it."""
    made = []
    for own in (True, False):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False, **settings)
        if own:
            config._register_custom_module({nn.Linear: FusedLinear})
        model = inject_adapter_in_model(config, nn.Sequential(nn.Linear(24, 40)).to(dtype))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        made.append(model)
    assert isinstance(made[0][0], FusedLinear) and type(made[1][0]) is lora.Linear
    return made[0], made[1]


def learnt(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output, and the gradients of the input and of the adapter."""
    x = x.clone().requires_grad_()
    y = model(x)
    (y.float() * target).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {"0.lora_A.default.weight", "0.lora_B.default.weight"} <= set(grads)
    assert not any("base_layer" in name for name in grads)
    return {"y": y.detach(), "x": x.grad, **grads}


@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (2, 3, 5, 24)])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_the_same_output_and_gradients_as_peft(shape: tuple[int, ...], settings: dict[str, object]) -> None:
    fused, plain = layers(**settings)
    x, target = torch.randn(shape), torch.randn(*shape[:-1], 40)
    ours, theirs = learnt(fused, x, target), learnt(plain, x, target)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5, msg=name)
        assert ours[name].dtype == theirs[name].dtype


def test_in_mixed_precision_it_is_no_further_from_the_exact_result_than_peft() -> None:
    fused, plain = layers(torch.bfloat16)
    x, target = torch.randn(64, 24, dtype=torch.bfloat16), torch.randn(64, 40)
    exact = learnt(layers(torch.bfloat16)[1].double(), x.double(), target.double())
    ours = learnt(fused, x, target)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = learnt(plain, x, target)
    for name, value in exact.items():
        assert ours[name].dtype == theirs[name].dtype
        mine, peft = ((each[name].double() - value).norm() / value.norm() for each in (ours, theirs))
        assert mine < max(1.1 * peft, 2**-8), name


def test_an_adapter_that_is_switched_off_or_drops_goes_the_plain_way() -> None:
    fused, plain = layers(lora_dropout=0.5)
    x = torch.randn(6, 24)
    for model in (fused, plain):
        model.train()
    torch.manual_seed(3)
    ours = fused(x)
    torch.manual_seed(3)
    assert torch.equal(ours, plain(x))
    fused, _ = layers()
    fused[0].enable_adapters(False)
    assert torch.equal(fused(x), fused[0].base_layer(x))


def test_it_keeps_less_for_the_backward_pass_than_peft() -> None:
    """Bytes that autograd keeps of activations in mixed precision; the frozen weight itself costs nothing."""

    def kept(model: nn.Module) -> int:
        own = {p.data_ptr() for p in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                seen[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            x = torch.randn(256, 24, dtype=torch.bfloat16, requires_grad=True)
            model(x).sum()
        return sum(seen.values())

    fused, plain = layers(torch.bfloat16)
    assert kept(fused) < kept(plain)
