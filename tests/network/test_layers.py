import pytest
import torch
import torch.nn.functional as F

from hcast_zoo.network.layers import mix_values


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_attention_and_its_gradient(dtype, tolerance, masked):
    """In either precision, as in float64 by torch's fused kernel."""
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = torch.rand(2, 1, 1, 7, generator=generator) > 0.3 if masked else None
    inputs = [x.to(dtype).requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in inputs]

    output, expected = mix_values(*inputs, mask), F.scaled_dot_product_attention(*exact, attn_mask=mask)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    output.sum().backward()
    expected.sum().backward()
    for x, reference in zip(inputs, exact):
        torch.testing.assert_close(x.grad.double(), reference.grad, rtol=tolerance, atol=5 * tolerance)


def test_training_in_bfloat16_on_a_cpu_avoids_the_fused_kernel(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or fused(*a, **k))
    x = torch.randn(1, 2, 5, 4)
    mix_values(x, x, x, None)
    mix_values(x.bfloat16(), x.bfloat16(), x.bfloat16(), None)
    assert len(calls) == 2

    trained = x.bfloat16().requires_grad_()
    mix_values(trained, trained, trained, None)
    assert len(calls) == 2
