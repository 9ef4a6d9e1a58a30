"""Proves that losses and scores are what one counts by hand, and that ignored pixels count for nothing."""

import pytest
import torch
from torch import Tensor

from searchseg.loss import class_weights, dice_cross_entropy_loss, dice_loss
from searchseg.metric import ConfusionMatrix

LOSSES = {"dice": dice_loss, "dice+ce": dice_cross_entropy_loss}
both_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
IGNORE = 255


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks(*shape: int, classes: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def certain(prediction: Tensor, classes: int) -> Tensor:
    """Logits (B, K, H, W) that give `prediction` (B, H, W) all the probability."""
    return 100.0 * torch.nn.functional.one_hot(prediction, classes).permute(0, 3, 1, 2).float()


def by_hand(logits: Tensor, target: Tensor) -> Tensor:
    """The formula of the paper, class by class and pixel by pixel, in the precision of `logits`."""
    probability, losses = logits.softmax(1), []
    for k in range(logits.shape[1]):
        p = probability[:, k][target != IGNORE]
        g = (target[target != IGNORE] == k).to(p.dtype)
        if g.sum() > 0:
            losses.append(1 - 2 * (p * g).sum() / (p.sum() + g.sum()))
    return torch.stack(losses).mean()


def test_dice_of_two_classes_counted_by_hand():
    prediction = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1]]])
    target = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])
    # class 0: overlap 3, sizes 3 and 5: dice 6/8; class 1: overlap 3, sizes 5 and 3: 6/8
    assert dice_loss(certain(prediction, 2), target).item() == pytest.approx(0.25)
    # a pixel of doubt in class 1 at one place of four: p = (.5, .5)
    even = dice_loss(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 1, 1, 1]]]))
    assert even.item() == pytest.approx(((1 - 2 * 0.5 / 3) + (1 - 2 * 1.5 / 5)) / 2)


def test_dice_with_ignored_pixels_and_an_absent_class_counted_by_hand():
    prediction = torch.tensor([[[0, 0, 1, 1], [2, 1, 1, 1]]])
    target = torch.tensor([[[0, 0, 0, 255], [0, 255, 1, 1]]])  # no pixel of class 2
    # counted: prediction 0 0 1 2 1 1, target 0 0 0 0 1 1; class 0: sizes 2 and 4, class 1: sizes 3 and 2
    wanted = 1 - ((2 * 2 / (2 + 4)) + (2 * 2 / (3 + 2))) / 2
    assert dice_loss(certain(prediction, 3), target).item() == pytest.approx(wanted)


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_dice_follows_the_formula_on_random_masks(classes):
    logits, target = noise(3, classes, 7, 5), masks(3, 7, 5, classes=classes)
    target[0, :3], target[target == 1] = IGNORE, 0  # ignored pixels and an absent class
    assert dice_loss(logits, target).item() == pytest.approx(
        by_hand(logits.double(), target).item(), abs=1e-6
    )


def test_dice_sums_over_the_whole_batch_not_over_each_picture():
    logits, target = noise(4, 3, 6, 6), masks(4, 6, 6)
    stitched = dice_loss(torch.cat(list(logits), -1)[None], torch.cat(list(target), -1)[None])
    assert dice_loss(logits, target).item() == pytest.approx(stitched.item(), abs=1e-6)


@both_losses
def test_what_stands_at_ignored_pixels_changes_nothing(loss):
    logits, target = noise(2, 3, 6, 6), masks(2, 6, 6)
    target[:, 2:4] = IGNORE
    other = logits.clone()
    other[:, :, 2:4] = 50 * noise(2, 3, 2, 6, seed=2)
    assert loss(other, target).item() == loss(logits, target).item()
    logits.requires_grad_()
    loss(logits, target).backward()
    assert not logits.grad[:, :, 2:4].any() and logits.grad[:, :, :2].all()


@both_losses
def test_a_batch_without_a_counted_pixel_gives_zero_and_a_zero_gradient(loss):
    logits = noise(2, 3, 4, 4).requires_grad_()
    value = loss(logits, torch.full((2, 4, 4), IGNORE))
    value.backward()
    assert value.item() == 0 and logits.grad.shape == logits.shape and not logits.grad.any()


@both_losses
def test_another_ignore_value_may_be_named(loss):
    logits, target = noise(2, 3, 6, 6), masks(2, 6, 6)
    there, here = target.clone(), target.clone()
    there[0], here[0] = IGNORE, 7
    assert loss(logits, here, ignore_index=7).item() == loss(logits, there).item()


@both_losses
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_masks_of_any_integer_type_give_the_same_loss(loss, dtype):
    logits, target = noise(2, 3, 6, 6), masks(2, 6, 6)
    target[0, 0] = IGNORE
    assert loss(logits, target.to(dtype)).item() == loss(logits, target).item()


@both_losses
def test_a_perfect_prediction_costs_nothing_and_the_opposite_nearly_everything(loss):
    target = masks(2, 8, 8, classes=2)
    assert loss(certain(target, 2), target).item() == pytest.approx(0, abs=1e-6)
    assert loss(certain(1 - target, 2), target).item() >= 1 - 1e-6


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_a_prediction_of_background_alone_does_not_pass_for_good(classes):
    # nine tenths of the pixels are background: a loss or a score that leaves the last class out calls it .9
    target = torch.zeros(1, 10, 10, dtype=torch.long)
    target[:, 0] = classes - 1
    nothing = torch.zeros_like(target)
    assert dice_loss(certain(nothing, classes), target).item() == pytest.approx((1 + 1 - 1.8 / 1.9) / 2)
    confusion = ConfusionMatrix(classes)
    confusion.update(nothing, target)
    scores = confusion.compute()
    assert scores.miou == pytest.approx(0.45) and scores.accuracy == pytest.approx(0.9)
    assert scores.iou == (pytest.approx(0.9), *[None] * (classes - 2), 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_gradient_of_dice_is_that_of_the_formula(seed):
    logits, target = noise(2, 3, 3, 2, seed=seed), masks(2, 3, 2, seed=seed)
    target[0, 0, 0] = IGNORE
    exact, single = logits.double().requires_grad_(), logits.clone().requires_grad_()
    by_hand(exact, target).backward()
    dice_loss(single, target).backward()
    assert torch.allclose(single.grad.double(), exact.grad, atol=1e-6)
    # and once more without any autograd: central differences of the loss itself, one logit after another
    step, slopes = 1e-2, torch.zeros_like(logits).flatten()
    for i in range(logits.numel()):
        nudge = torch.zeros_like(slopes)
        nudge[i] = step
        above, below = (dice_loss(logits + sign * nudge.view_as(logits), target).item() for sign in (1, -1))
        slopes[i] = (above - below) / (2 * step)
    assert torch.allclose(single.grad.flatten(), slopes, atol=1e-4)


def test_the_second_loss_adds_the_mean_cross_entropy_of_the_counted_pixels():
    logits, target = noise(2, 3, 6, 6), masks(2, 6, 6)
    target[0, 0] = IGNORE
    log_probability = logits.double().log_softmax(1).permute(0, 2, 3, 1)[target != IGNORE]
    pixels = target[target != IGNORE]
    entropy = -log_probability[torch.arange(len(pixels)), pixels].mean()
    wanted = dice_loss(logits, target).item() + entropy.item()
    assert dice_cross_entropy_loss(logits, target).item() == pytest.approx(wanted, abs=1e-6)


@both_losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_give_a_float32_loss(loss, dtype):
    logits, target = (8 * noise(2, 3, 64, 64)).to(dtype), masks(2, 64, 64)
    value = loss(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.float(), target).item(), abs=1e-6)


@both_losses
@pytest.mark.parametrize("scale", [1e-6, 1, 1e4])
def test_the_loss_is_finite_and_dice_stays_between_0_and_1(loss, scale):
    logits = (scale * noise(2, 3, 5, 5)).requires_grad_()
    value = loss(logits, masks(2, 5, 5))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    assert 0 <= dice_loss(logits, masks(2, 5, 5)).item() <= 1


@both_losses
@pytest.mark.parametrize("shape", [(2, 4, 4, 1), (1, 4, 4), (2, 4, 5), (2, 3, 4, 4), (4, 4)])
def test_shapes_that_do_not_match_are_refused(loss, shape):
    with pytest.raises(ValueError, match=r"needs logits \(B, K, H, W\) and target \(B, H, W\)"):
        loss(noise(2, 3, 4, 4), torch.zeros(shape, dtype=torch.long))


def scores_of(prediction: Tensor, target: Tensor, classes: int):
    confusion = ConfusionMatrix(classes)
    confusion.update(prediction, target)
    return confusion.compute()


def test_iou_counted_by_hand():
    prediction = torch.tensor([[0, 0, 1, 1], [2, 1, 1, 2]])
    target = torch.tensor([[0, 1, 1, 255], [0, 1, 2, 2]])
    # counted pairs (true, predicted): 00 10 11 02 11 21 22
    scores = scores_of(prediction, target, 4)
    assert scores.iou == (pytest.approx(1 / 3), pytest.approx(2 / 4), pytest.approx(1 / 3), None)
    assert scores.miou == pytest.approx((1 / 3 + 2 / 4 + 1 / 3) / 3)
    assert scores.accuracy == pytest.approx(4 / 7)


def test_a_class_that_is_predicted_but_nowhere_true_scores_zero_not_none():
    scores = scores_of(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 0]), 3)
    assert scores.iou == (pytest.approx(2 / 3), None, 0) and scores.miou == pytest.approx(1 / 3)


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_a_perfect_prediction_scores_one(classes):
    target = masks(2, 20, 20, classes=classes)
    scores = scores_of(target, target, classes)
    assert scores.iou == (1,) * classes and scores.miou == scores.accuracy == 1


def test_several_updates_equal_one_and_reset_forgets():
    prediction, target = masks(4, 9, 9, seed=1), masks(4, 9, 9, seed=2)
    target[1, :4] = IGNORE
    parts = ConfusionMatrix(3)
    parts.update(target, target)
    parts.reset()
    for i in range(4):  # one picture after another, each of another shape and type
        parts.update(prediction[i, : 9 - i], target[i, : 9 - i].to(torch.uint8))
        parts.update(prediction[i, 9 - i :].flatten(), target[i, 9 - i :].flatten())
    assert parts.compute() == scores_of(prediction, target, 3)
    assert parts.compute().miou < 0.5


def test_ignored_pixels_do_not_enter_the_score():
    prediction, target = masks(2, 9, 9, seed=1), masks(2, 9, 9, seed=2)
    target[:, :4] = IGNORE
    assert scores_of(prediction, target, 3) == scores_of(prediction[:, 4:], target[:, 4:], 3)
    nothing = scores_of(prediction, torch.full_like(target, IGNORE), 3)
    assert nothing.iou == (None,) * 3 and nothing.miou == nothing.accuracy == 0


def test_the_mean_is_over_the_split_not_over_its_pictures():
    # picture 1: class 1 has one pixel, missed; picture 2: 99 pixels, all found. 99/100, not (0 + 1) / 2
    confusion = ConfusionMatrix(2)
    confusion.update(torch.zeros(1, 100, dtype=torch.long), torch.eye(1, 100, dtype=torch.long))
    confusion.update(torch.ones(1, 99, dtype=torch.long), torch.ones(1, 99, dtype=torch.long))
    assert confusion.compute().iou[1] == pytest.approx(0.99)


def test_rare_classes_weigh_more_and_the_average_pixel_one():
    pixels = torch.tensor([900, 90, 10, 0])
    weights = class_weights(pixels)
    wanted = [1 / torch.log(torch.tensor(1.02 + share)) for share in (0.9, 0.09, 0.01, 0.0)]
    assert torch.allclose(weights / weights[0], torch.stack(wanted) / wanted[0])
    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="pixels of each class"):
        class_weights(torch.zeros(3))


def test_the_weighted_cross_entropy_is_torchs_mean_and_finite_without_pixels():
    logits, target = noise(2, 3, 5, 6), masks(2, 5, 6)
    target[0, :2] = IGNORE
    weight = torch.tensor([0.5, 1.0, 4.0])
    wanted = torch.nn.functional.cross_entropy(logits, target, weight, ignore_index=IGNORE)
    found = dice_cross_entropy_loss(logits, target, weight=weight)
    assert found - dice_loss(logits, target) == pytest.approx(wanted.item(), abs=1e-6)
    assert torch.allclose(
        dice_cross_entropy_loss(logits, target, weight=torch.ones(3)), dice_cross_entropy_loss(logits, target)
    )
    assert dice_cross_entropy_loss(logits, torch.full_like(target, IGNORE), weight=weight) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dice_and_its_gradient_are_bit_for_bit_those_of_one_hot_numbers(layout):
    logits, target = noise(3, 11, 24, 20).contiguous(memory_format=layout), masks(3, 24, 20, classes=11)
    target[:, :3] = IGNORE
    counted = (target != IGNORE).unsqueeze(1)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    probability = leaves[0].softmax(1) * counted
    one_hot = torch.nn.functional.one_hot(target.masked_fill(target == IGNORE, 0), 11).permute(0, 3, 1, 2)
    one_hot = one_hot * counted
    overlap, g_sum = (probability * one_hot).sum((0, 2, 3)), one_hot.sum((0, 2, 3))
    loss = (1 - 2 * overlap / (probability.sum((0, 2, 3)) + g_sum)).sum() / 11
    found = dice_loss(leaves[1], target)
    gradients = [torch.autograd.grad(*pair)[0] for pair in zip((loss, found), leaves, strict=True)]
    assert loss == found and torch.equal(*gradients)


@both_losses
@pytest.mark.parametrize("wrong", [-1, 3, 254])
def test_ids_without_a_class_are_refused(loss, wrong):
    target = masks(2, 5, 4)
    target[1, 2, 3] = wrong
    with pytest.raises(ValueError, match="3 classes"):
        loss(noise(2, 3, 5, 4), target)
