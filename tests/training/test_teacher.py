"""Teachers: probabilities of every level, from H-CAST weights or a timm model, and the loss of distillation."""

import pytest
import timm
import torch
import torch.nn.functional as F

from hcast_zoo.paper.trees import load_tree
from hcast_zoo.taxonomy.rollup import roll_up
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.training import teacher
from hcast_zoo.training.teacher import TeacherError, distillation_loss, load_teacher
from hcast_zoo.weights.file import build_model, load_weights
from tests.tiny import LEVELS, TREE


def test_probabilities_are_summed_up_an_uneven_tree():
    tree = Taxonomy.from_paths([("a", "b", "c"), ("a", "b", "d"), ("a", "e"), ("f",)], ("x", "y", "z"))
    leaves = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    summed = roll_up(leaves, tree)
    for path in tree.paths:
        for level, node in enumerate(path):
            below = [p for q, p in zip(tree.paths, leaves[0]) if q[: level + 1] == path[: level + 1]]
            if node >= 0:
                assert summed[level][0, node].item() == pytest.approx(float(sum(below)))


def test_an_hcast_teacher_sees_what_the_student_sees(tiny_weights, tiny_config, taxonomy):
    """Images get the teacher's normalisation and size, so its answers are those for its own images."""
    weights = load_weights(tiny_weights)
    model = build_model(weights)
    pixels = torch.rand(3, 3, 32, 32)
    student = tiny_config.replace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images, theirs = (
        (pixels - torch.tensor(c.mean).view(-1, 1, 1)) / torch.tensor(c.std).view(-1, 1, 1)
        for c in (student, weights.config)
    )
    probabilities = load_teacher(str(tiny_weights), taxonomy, student)(images, 1.0)

    scores = [x.log_softmax(-1) for x in model(theirs).level_logits]
    paths = torch.tensor(taxonomy.paths)
    expected = sum(s[:, paths[:, level]] for level, s in enumerate(scores)).div(3).softmax(-1)
    torch.testing.assert_close(probabilities[-1], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(probabilities[0].sum(-1), torch.ones(3))


def test_a_timm_teacher_is_matched_by_its_class_names(taxonomy, tiny_config, monkeypatch):
    names = ["wolf", "tiger", "lion", "herring gull", "snowy owl", "barn owl"]  # the leaves, backwards
    model = timm.create_model("test_efficientnet", num_classes=6).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": names}
    monkeypatch.setattr(teacher.timm, "create_model", lambda name, pretrained: model)
    matched = load_teacher("timm:test_efficientnet", taxonomy, tiny_config)
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(matched.probabilities(images, 2.0)[-1], (model(images) / 2).softmax(-1).flip(1))

    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["otter", *names[1:]]}
    with pytest.raises(TeacherError, match="such as 'otter', are not the 6 leaves"):
        load_teacher("timm:test_efficientnet", taxonomy, tiny_config)

    monkeypatch.undo()
    thousand = timm.create_model("test_efficientnet").eval()
    monkeypatch.setattr(teacher.timm, "create_model", lambda name, pretrained: thousand)
    with pytest.raises(TeacherError, match="the 1000 classes of timm's test_efficientnet"):
        load_teacher("timm:test_efficientnet", taxonomy, tiny_config)
    assert load_teacher("timm:test_efficientnet", load_tree("imagenet"), tiny_config).order.tolist() == [*range(1000)]


def test_a_teacher_with_another_tree_is_refused(tiny_weights, tiny_config):
    other = Taxonomy.from_paths([(*path[:2], f"young {path[2]}") for path in TREE], LEVELS)
    with pytest.raises(TeacherError, match=r"is not the student.s: .* got 2 > 4 > 6"):
        load_teacher(str(tiny_weights), other, tiny_config)


def test_distillation_is_smallest_at_the_teachers_logits():
    logits = torch.randn(4, 5)
    target = (logits / 2).softmax(-1)
    entropy = -(target * target.log()).sum(-1).mean()

    torch.testing.assert_close(distillation_loss([logits], [target], 2.0), 4 * entropy)

    assert distillation_loss([logits + torch.randn(4, 5)], [target], 2.0) > 4 * entropy
    divergence = F.kl_div((logits.flip(0) / 2).log_softmax(-1), target, reduction="batchmean") * 4
    torch.testing.assert_close(distillation_loss([logits.flip(0)], [target], 2.0) - 4 * entropy, divergence)
