"""Losses against the numbers of the authors' training loop, and against PyTorch's own losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hcast_zoo.training.losses import (
    HierarchicalLoss,
    check_labels,
    level_binary_cross_entropy,
    level_cross_entropy,
    soft_targets,
    tree_path_kl,
)
from tests.conftest import load_npz

GOLDEN = load_npz("losses.npz")
CASES = sorted({tuple(k.split(".")[:2]) for k in GOLDEN if k.count(".") == 2})
PARTS = {2: ("fam_loss", "sp_loss"), 3: ("manu_loss", "fam_loss", "sp_loss")}  # coarse to fine


def close(ours, theirs, rtol=3e-5):
    torch.testing.assert_close(ours, torch.from_numpy(np.asarray(theirs, np.float32)), rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("levels, case", CASES)
def test_losses_and_gradients_match_the_official(levels, case):
    count = int(levels[0])

    order = range(count - 1, -1, -1)  # theirs are fine first
    logits = [torch.from_numpy(GOLDEN[f"{levels}.logits_{i}"]).requires_grad_() for i in order]

    smoothing = {"hard_ls_nokl": 0.1}.get(case, 0.0)
    if f"{levels}.{case}.target_0" in GOLDEN:
        targets = [torch.from_numpy(GOLDEN[f"{levels}.{case}.target_{i}"]) for i in order]
    else:
        targets = torch.stack([torch.from_numpy(GOLDEN[f"{levels}.hard_{i}"]).long() for i in order], 1)

    loss = HierarchicalLoss(0.5 if case.endswith("_kl") else 0.0, smoothing=smoothing, binary=case.startswith("bce"))
    total = loss(logits, targets)
    close(total, GOLDEN[f"{levels}.{case}.total"])
    for gradient, i in zip(torch.autograd.grad(total, logits), order):
        expected = torch.from_numpy(GOLDEN[f"{levels}.{case}.grad_{i}"])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)

    if case.startswith("bce"):
        targets[-1] = (targets[-1] > 0).float()

    if case.endswith("_kl"):
        kl = tree_path_kl(logits, targets)
        close(kl, GOLDEN[f"{levels}.{case}.gk_loss"])
        for gradient, i in zip(torch.autograd.grad(kl, logits), order):
            theirs = torch.from_numpy(GOLDEN[f"{levels}.{case}.kl_grad_{i}"])
            torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-7)

    if case == "onehot_kl":
        for x, t, part in zip(logits, targets, PARTS[count]):
            close(level_cross_entropy(x, t), GOLDEN[f"{levels}.{case}.{part}"])


def random_case(seed=0):

    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(8, c, generator=generator) for c in (3, 5, 9)]
    labels = torch.stack([torch.randint(c, (8,), generator=generator) for c in (3, 5, 9)], 1)
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_matches_pytorch(smoothing):
    logits, labels = random_case()
    expected = sum(F.cross_entropy(x, y, label_smoothing=smoothing) for x, y in zip(logits, labels.T))
    torch.testing.assert_close(HierarchicalLoss(0.0, smoothing=smoothing)(logits, labels), expected)


def test_kl_is_cross_entropy_less_entropy():
    logits, labels = random_case()
    log_p = torch.cat(logits, 1).log_softmax(1)
    offsets = torch.tensor([0, 3, 8])
    expected = -log_p.gather(1, labels + offsets).mean() - np.log(3)
    torch.testing.assert_close(tree_path_kl(logits, soft_targets(labels, (3, 5, 9))), expected)


def test_unknown_labels_are_left_out():
    logits, labels = random_case()
    labels[:, 2], labels[0] = -1, -1  # the finest level is unknown to all, the first sample altogether
    expected = sum(F.cross_entropy(x[1:], y[1:]) for x, y in zip(logits[:2], labels.T[:2]))
    torch.testing.assert_close(HierarchicalLoss(0.0)(logits, labels), expected)
    two_levels = tree_path_kl([x[1:] for x in logits[:2]], soft_targets(labels[1:, :2], (3, 5)))
    torch.testing.assert_close(tree_path_kl(logits, soft_targets(labels, (3, 5, 9))), two_levels)
    logits = [x.requires_grad_() for x in logits]
    HierarchicalLoss()(logits, labels).backward()
    assert not logits[2].grad.any() and not logits[0].grad[0].any() and logits[0].grad[1:].any()


def test_no_known_label_gives_zero():
    logits, labels = random_case()
    logits = [x.requires_grad_() for x in logits]
    loss = HierarchicalLoss()(logits, torch.full_like(labels, -1))
    loss.backward()
    assert loss.item() == 0 and all(not x.grad.any() for x in logits)


def test_binary_cross_entropy_counts_only_known_samples():
    logits, labels = random_case()
    labels[:3, 1] = -1
    target = soft_targets(labels, (3, 5, 9))[1]
    expected = F.binary_cross_entropy_with_logits(logits[1][3:], target[3:])
    torch.testing.assert_close(level_binary_cross_entropy(logits[1], target), expected)


def test_binary_loss_of_hard_labels_is_that_of_one_hot_targets():
    logits, labels = random_case()
    one_hot = [F.one_hot(y, c).float() for y, c in zip(labels.T, (3, 5, 9))]
    expected = sum(map(F.binary_cross_entropy_with_logits, logits, one_hot))
    torch.testing.assert_close(HierarchicalLoss(0.0, binary=True)(logits, labels), expected)


def test_the_tree_path_kl_counts_half_unless_asked():
    logits, labels = random_case()
    targets = soft_targets(labels, (3, 5, 9))
    expected = sum(map(level_cross_entropy, logits, targets)) + 0.5 * tree_path_kl(logits, targets)
    torch.testing.assert_close(HierarchicalLoss()(logits, labels), expected)


def test_levels_count_by_their_weights():
    logits, labels = random_case()
    parts = [F.cross_entropy(x, y) for x, y in zip(logits, labels.T)]
    loss = HierarchicalLoss(0.0, level_weights=(0.5, 0.0, 2.0))(logits, labels)
    torch.testing.assert_close(loss, 0.5 * parts[0] + 2.0 * parts[2])
    with pytest.raises(ValueError, match="zip"):
        HierarchicalLoss(level_weights=(1.0, 1.0))(logits, labels)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([[0, 0, 9]]), "label 9 of sample 0 is out of range at level 2: expected 0 to 8"),
        (torch.tensor([[0, -2, 0]]), "label -2 of sample 0"),
        (torch.tensor([[0, 0]]), r"expected labels \(B, 3\)"),
        (torch.tensor([[0.0, 0.0, 0.0]]), "integer dtype"),
    ],
)
def test_wrong_labels_are_explained(labels, message):
    logits = [x[:1] for x in random_case()[0]]
    with pytest.raises(ValueError, match=message):
        HierarchicalLoss()(logits, labels)
    with pytest.raises(ValueError, match="expected targets of"):
        HierarchicalLoss()(logits, [torch.zeros(1, 3)] * 3)


def test_one_wrong_label_is_found():
    with pytest.raises(ValueError, match="label 3 of sample 0 is out of range at level 0: expected 0 to 2"):
        check_labels(torch.tensor([[3]]), (3,))


def test_a_row_counts_by_its_sum():
    logits, labels = random_case()
    half = 0.5 * soft_targets(labels, (3, 5, 9))[1]
    for row in range(8):
        expected = F.cross_entropy(logits[1][row], labels[row, 1])
        torch.testing.assert_close(level_cross_entropy(logits[1][row : row + 1], half[row : row + 1]), expected)


def test_weight_zero_leaves_the_tree_path_kl_out(monkeypatch):
    logits, labels = random_case()
    expected = HierarchicalLoss(0.0)(logits, labels)
    monkeypatch.setattr("hcast_zoo.training.losses.tree_path_kl", lambda *_: torch.tensor(torch.nan))
    assert HierarchicalLoss()(logits, labels).isnan() and HierarchicalLoss(0.0)(logits, labels) == expected


def test_losses_have_the_dtype_of_the_logits():
    logits, labels = random_case()
    logits, targets = [x.bfloat16() for x in logits], soft_targets(labels, (3, 5, 9))
    assert tree_path_kl(logits, targets).dtype == torch.bfloat16
    assert level_binary_cross_entropy(logits[0], targets[0]).dtype == torch.bfloat16


def test_the_tree_path_kl_of_one_level_is_its_cross_entropy():
    logits, labels = random_case()
    kl = tree_path_kl(logits[:1], soft_targets(labels[:, :1], (3,)))
    torch.testing.assert_close(kl, F.cross_entropy(logits[0], labels[:, 0]))


def test_the_loss_compiles_in_one_piece():
    logits, labels = random_case()
    compiled = torch.compile(HierarchicalLoss(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, labels), HierarchicalLoss()(logits, labels))


def test_the_loss_runs_on_the_meta_device():
    logits, labels = random_case()
    assert HierarchicalLoss()([x.to("meta") for x in logits], labels.to("meta")).is_meta


def test_labels_are_checked_on_their_own_device():
    _, labels = random_case()
    with torch.device("meta"):  # the default device, which must not be used
        check_labels(labels, (3, 5, 9))
        with pytest.raises(ValueError, match="label 9"):
            check_labels(torch.full_like(labels, 9, device="cpu"), (3, 5, 9))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("binary", [False, True])
def test_half_precision_is_finite_and_near(dtype, tolerance, binary):
    """Unknown levels are masked by a low number; in float16 the lowest one would give a log-softmax of -inf."""
    logits, labels = random_case()
    labels[:3, 1:] = -1
    labels[5] = -1
    loss = HierarchicalLoss(0.5, binary=binary)
    expected = loss(logits, labels)
    half = [x.to(dtype).requires_grad_() for x in logits]
    total = loss(half, labels)
    total.backward()
    assert total.isfinite() and all(x.grad.isfinite().all() for x in half)
    torch.testing.assert_close(total.float(), expected, rtol=tolerance, atol=0)
