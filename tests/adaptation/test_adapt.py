"""Test-time adaptation: the losses, the trust region, and a model that is left as it was."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

from hcast_zoo import Predictor
from hcast_zoo.adaptation.adapt import AdaptationError, adapt, make_loss, node_log_probability
from hcast_zoo.adaptation.config import FREE, AdaptConfig
from hcast_zoo.common.choices import FEEDBACK
from hcast_zoo.network.model import HCast
from hcast_zoo.segments.metrics import colour_contrast
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.attacks import threads
from tests.taxonomy.test_decode import probabilities, random_logits
from tests.tiny import make_pictures


@pytest.fixture
def image():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def fingerprint(model):
    """Return what must not change in a model: values, identity of parameters, gradients and hooks."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    grads = [p.grad is None for p in model.parameters()]
    return (
        digest.hexdigest(),
        [id(p) for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        hooks,
        grads,
    )


@pytest.mark.parametrize("node", ["bird", "cat", "wolf"])
def test_node_probability_matches_enumeration(taxonomy, node):
    logits, (level, index) = random_logits(taxonomy, 20, seed=12), taxonomy.find(node)
    ours = node_log_probability(logits, taxonomy, (level, index)).exp()
    for row, probs in enumerate(zip(*probabilities(logits))):
        products = {path: np.prod([p[n] for p, n in zip(probs, path)]) for path in taxonomy.paths}
        through = sum(v for path, v in products.items() if path[level] == index)
        assert ours[row].item() == pytest.approx(through / sum(products.values()), rel=1e-4)


def test_node_probability_matches_decoding(taxonomy):
    logits = random_logits(taxonomy, 20, seed=13)
    calibration = Calibration((0.5, 2.0, 1.5), 1.7)
    decoded = decode(calibration.logits(logits), taxonomy, path_temperature=1.7)
    for row, level in itertools.product(range(20), range(3)):
        node = level, decoded.paths[row, level].item()
        ours = node_log_probability([x[row : row + 1] for x in logits], taxonomy, node, calibration).exp()
        assert ours.item() == pytest.approx(decoded.prefix_probabilities[row, level].item(), rel=1e-4)


def test_entropy_and_agreement_match_enumeration(taxonomy):
    logits = random_logits(taxonomy, 1, seed=14)
    probs = [p[0] for p in probabilities(logits)]
    entropy = np.mean([-(p * np.log(p)).sum() for p in probs])
    assert make_loss("entropy", taxonomy)(logits).item() == pytest.approx(entropy, rel=1e-4)

    on_a_path = sum(np.prod([p[node] for p, node in zip(probs, path)]) for path in taxonomy.paths)
    assert make_loss("agreement", taxonomy)(logits).item() == pytest.approx(-np.log(on_a_path), rel=1e-4)


@pytest.mark.parametrize("free", [*((kind,) for kind in FREE), FREE])
@pytest.mark.parametrize("target", ["bird", "dog", "tiger"])
def test_target_rises_within_the_trust_region(tiny_model, taxonomy, image, target, free):
    config = AdaptConfig(free, steps=4, step_size=0.1, radius=0.25)
    stored = fingerprint(tiny_model)
    a = adapt(tiny_model, image, taxonomy, target, config=config)
    assert fingerprint(tiny_model) == stored

    before, after = (node_log_probability(o.level_logits, taxonomy, a.node).item() for o in (a.before, a.after))
    assert a.losses[0] == pytest.approx(-before, abs=1e-5) and min(a.losses) == pytest.approx(-after, abs=1e-5)
    assert after > before and len(a.losses) == 5
    assert set(a.distances) == set(free) and all(0 <= d <= 0.25 * (1 + 1e-5) for d in a.distances.values())
    assert max(a.distances.values()) > 0.05


@pytest.mark.parametrize("free", FREE)
@pytest.mark.parametrize("target", ["bird", "cat", "tiger"])
def test_a_step_is_kept_only_if_contrast_rises_too(tiny_model, taxonomy, image, target, free):
    """The result is unchanged, or has a lower loss and segments of higher contrast."""
    a = adapt(tiny_model, image, taxonomy, target, config=AdaptConfig((free,), steps=6, contrast=True))
    assert len(a.losses) == 7
    stages = range(2, len(a.before.assignments) + 2)
    before, after = (
        sum(colour_contrast(output.segment_map(stage)[0], image[0]) for stage in stages)
        for output in (a.before, a.after)
    )

    loss = make_loss("target", taxonomy, a.node)(a.after.level_logits).item()
    assert a.distances[free] or target == "bird"  # every kind of tensor finds such a step for the finer levels
    if a.distances[free]:
        assert after > before and loss < a.losses[0]
    else:
        assert after == before and loss == pytest.approx(a.losses[0])

    with a.applied(tiny_model) as adapted, torch.no_grad():
        again = adapted(image)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(again.level_logits, a.after.level_logits))


@pytest.mark.parametrize("feedback", FEEDBACK[1:])
def test_feedback_needs_no_target(tiny_model, taxonomy, image, feedback):
    a = adapt(tiny_model, image, taxonomy, feedback=feedback)
    loss = make_loss(feedback, taxonomy, a.node)
    assert loss(a.after.level_logits).item() == pytest.approx(min(a.losses), abs=1e-6) and min(a.losses) < a.losses[0]
    if feedback == "path":
        with torch.no_grad():
            predicted = decode(tiny_model(image).level_logits, taxonomy).paths[0]
        assert a.node == (2, predicted[2].item())


def test_the_first_step_follows_the_gradient(tiny_model, taxonomy, image):
    """The step is the scaled negative gradient; it lowers the loss more than a random step of its length changes it."""
    a = adapt(tiny_model, image, taxonomy, "tiger", config=AdaptConfig(("tokens",), steps=1, step_size=0.01))
    with torch.no_grad():
        segments = tiny_model.prepare_segments(image, None, 16)
        tokens, valid = tiny_model.embed(image, segments, 16)
    assert a.token_offset.norm().item() == pytest.approx(0.01 * tokens[:, 1:].norm().item(), rel=1e-4)

    loss = make_loss("target", taxonomy, a.node)

    def shifted_loss(offset):
        moved = tokens + torch.nn.functional.pad(offset * valid[..., None], (0, 0, 1, 0))  # empty superpixels stay
        handle = tiny_model.stages[0].register_forward_pre_hook(lambda m, args: (moved, *args[1:]))
        result = loss(tiny_model(image, segments).level_logits)
        handle.remove()
        return result

    def value(offset):
        with torch.no_grad():
            return shifted_loss(offset).item()

    assert value(a.token_offset) == pytest.approx(a.losses[1], abs=1e-5)

    start = torch.zeros_like(a.token_offset, requires_grad=True)
    (gradient,) = torch.autograd.grad(shifted_loss(start), start)
    expected = -gradient * a.token_offset.norm() / gradient.norm()
    torch.testing.assert_close(a.token_offset, expected, rtol=1e-3, atol=1e-5)

    random = torch.randn(a.token_offset.shape, generator=torch.Generator().manual_seed(1)) * valid[..., None]
    random *= a.token_offset.norm() / random.norm()
    assert a.losses[0] - value(a.token_offset) > abs(a.losses[0] - value(random))


def test_applied_gives_the_adapted_model_and_then_the_stored_one(tiny_model, taxonomy, image):
    a = adapt(tiny_model, image, taxonomy, "wolf", config=AdaptConfig(FREE))
    stored = fingerprint(tiny_model)
    message = "expected the one picture, of 16 tokens, that the model is adapted to, got 2 pictures of 16"
    with torch.no_grad():
        with a.applied(tiny_model) as model:
            adapted = model(image).level_logits
            with pytest.raises(ValueError, match=message):
                model(torch.cat([image, image]))

        again = tiny_model(image).level_logits

    for x, y, z, w in zip(adapted, a.after.level_logits, again, a.before.level_logits):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)
        torch.testing.assert_close(z, w, atol=1e-6, rtol=0)

    assert fingerprint(tiny_model) == stored


def test_an_exception_restores_the_model(tiny_model, taxonomy, image):
    a = adapt(tiny_model, image, taxonomy, "wolf", config=AdaptConfig(FREE))
    stored = fingerprint(tiny_model)
    with pytest.raises(KeyboardInterrupt), a.applied(tiny_model) as model:
        assert fingerprint(model) != stored
        for parameter in a.parameters.values():
            parameter.data.fill_(7.0)
        raise KeyboardInterrupt

    assert fingerprint(tiny_model) == stored


def test_threads_adapt_and_predict_with_one_model(tiny_weights, tmp_path):
    """No thread sees another's adaptation, and the weights stay; tests/attacks/threads.py runs longer."""
    result = threads.attack(Predictor(tiny_weights), make_pictures(tmp_path, 3), rounds=3)
    assert result == {
        "adaptations": 12,
        "wrong adaptations": 0,
        "predictions": 36,
        "wrong predictions": 0,
        "same bytes": True,
    }


def test_the_model_is_the_stored_one_while_it_is_adapted(tiny_model, taxonomy, image):
    a = adapt(tiny_model, image, taxonomy, "wolf", config=AdaptConfig(FREE))
    stored = fingerprint(tiny_model)
    with torch.no_grad(), a.applied(tiny_model) as adapted:
        assert fingerprint(tiny_model) == stored
        assert all(torch.equal(x, y) for x, y in zip(tiny_model(image).level_logits, a.before.level_logits))
        assert not torch.equal(adapted(image).level_logits[0], a.before.level_logits[0])
    shared = {id(p) for p in tiny_model.parameters()} & {id(p) for p in adapted.parameters()}
    assert len(shared) == len(list(tiny_model.parameters())) - len(a.parameters)


def test_a_compiled_model_is_adapted(tiny_model, taxonomy, image):
    """Module.compile() prepares a call that is bound to the original model, not to a copy."""
    plain = adapt(tiny_model, image, taxonomy, "wolf", config=AdaptConfig(("norms",)))
    tiny_model._compiled_call_impl = tiny_model._call_impl
    again = adapt(tiny_model, image, taxonomy, "wolf", config=AdaptConfig(("norms",)))
    assert again.losses == plain.losses and again.losses[1] < again.losses[0]


@pytest.mark.parametrize("free", FREE)
def test_a_loss_of_nan_stops_and_restores(tiny_model, taxonomy, image, free):
    stored = fingerprint(tiny_model)
    with pytest.raises(AdaptationError, match=r"the loss is nan after 0 steps.*check the picture"):
        adapt(tiny_model, image * torch.nan, taxonomy, "wolf", config=AdaptConfig((free,)))
    assert fingerprint(tiny_model) == stored


def test_a_loss_of_nan_after_some_steps_stops_and_restores(tiny_model, taxonomy, image):
    stored = fingerprint(tiny_model)
    with pytest.raises(AdaptationError, match=r"after 1 steps.*smaller step_size"):
        adapt(tiny_model, image, taxonomy, "wolf", config=AdaptConfig(("norms",), step_size=1e38, radius=1e38))
    assert fingerprint(tiny_model) == stored


def test_a_gradient_that_is_not_finite_stops_and_restores(tiny_model, taxonomy, image):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    handle = tiny_model.stages[1].register_forward_hook(lambda m, args, out: (Poison.apply(out[0]), *out[1:]))
    stored = fingerprint(tiny_model)
    with pytest.raises(AdaptationError, match="gradient of tokens is not finite after 0 steps"):
        adapt(tiny_model, image, taxonomy, "wolf")
    assert fingerprint(tiny_model) == stored
    handle.remove()


def test_frozen_models_adapt_in_inference_mode(tiny_model, taxonomy):
    """The caller's settings do not matter: the free parts get their gradients."""
    for parameter in tiny_model.parameters():
        parameter.requires_grad_(False)
    stored = fingerprint(tiny_model)
    with torch.inference_mode():
        image = torch.ones(1, 3, 32, 32)
        a = adapt(tiny_model, image, taxonomy, "wolf", config=AdaptConfig(FREE))
    assert min(a.losses) < a.losses[0] and fingerprint(tiny_model) == stored


def test_empty_superpixels_stay_empty(tiny_model, taxonomy, image):
    segments = torch.zeros(1, 32, 32, dtype=torch.int64)
    segments[..., 16:] = 5
    a = adapt(tiny_model, image, taxonomy, "wolf", segments=segments)
    assert a.token_offset[0].norm(dim=-1).nonzero().flatten().tolist() == [0, 5]


def test_targets_may_be_shallow_leaves_with_other_clusters(tiny_config, image):
    t = Taxonomy.from_paths([("animal", "lion"), ("animal", "wolf"), ("rock",)])
    model = HCast(tiny_config.replace(level_classes=t.level_classes)).eval()
    a = adapt(model, image, t, "rock", num_clusters=(6, 3, 2, 1))
    assert a.node == (0, 1) and min(a.losses) < a.losses[0] and a.after.assignments[0].shape == (1, 16, 6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(target="wulf"), "no node 'wulf' in the taxonomy: did you mean 'wolf'"),
        (dict(target=(2, 6)), "level and index in levels"),
        (dict(), "expected a target for the feedback 'target'"),
        (dict(target="wolf", feedback="entropy"), "expected a target for the feedback 'target', and None"),
        (dict(feedback="hope"), "unknown feedback 'hope'"),
    ],
)
def test_wrong_feedback_is_explained(tiny_model, taxonomy, image, arguments, message):
    with pytest.raises((ValueError, TaxonomyError), match=message):
        adapt(tiny_model, image, taxonomy, **arguments)


def test_wrong_models_and_images_are_explained(tiny_model, taxonomy, image):
    with pytest.raises(ValueError, match="expected one image"):
        adapt(tiny_model, image[0], taxonomy, "wolf")
    with pytest.raises(ValueError, match="expected one image"):
        adapt(tiny_model, image.repeat(2, 1, 1, 1), taxonomy, "wolf")
    with pytest.raises(ValueError, match="eval mode"):
        adapt(tiny_model.train(), image, taxonomy, "wolf")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(free=()), "free: expected some of"),
        (dict(free=("tokens", "tokens")), "each once"),
        (dict(free=("heads",)), "free: expected some of tokens, pooling, norms"),
        (dict(steps=0), "steps: expected an integer from 1 to 1000"),
        (dict(step_size=float("nan")), "step_size: expected a positive number"),
        (dict(radius=0), "radius: expected a positive number"),
    ],
)
def test_wrong_settings_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**arguments)
