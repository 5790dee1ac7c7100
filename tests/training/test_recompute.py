"""Recomputing norms, GELU and dropout in the backward pass: the same training with less memory."""

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hcast_zoo.network.model import HCast


def step(model, images, segments):
    torch.manual_seed(1)
    output = model(images, segments)
    loss = sum(logits.square().mean() for logits in output.level_logits)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), gradients


def peak(model, images, segments):
    """Return the largest number of bytes that tensors take during a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model, images, segments)
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes))


@pytest.mark.parametrize("autocast", [False, True])
def test_same_gradients_with_dropout_and_less_memory(tiny_config, autocast):
    torch.manual_seed(0)
    model = HCast(tiny_config.replace(drop_path_rate=0.2)).train()
    size = tiny_config.image_size
    images = torch.randn(16, 3, size, size)
    segments = torch.randint(0, tiny_config.num_superpixels, (16, size, size))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, first = peak(model, images, segments), step(model, images, segments)
        model.recompute()
        less, second = peak(model, images, segments), step(model, images, segments)

    assert first[0] == second[0] and first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), name
    assert less < plain
