"""Promises of the preference losses: the declared value at the start, right signs, exact gradients, honest names."""

from __future__ import annotations

import math

import pytest
import torch

from chatloom.objectives.preference import KINDS, PreferenceLoss


def settings_of(kind: str) -> list[PreferenceLoss]:
    smoothing = (0.0, 0.1, 0.4) if KINDS[kind].smooths else (0.0,)
    return [PreferenceLoss(kind, beta, e) for beta in (0.05, 0.1, 2.0) for e in smoothing]


ALL = [loss for kind in KINDS for loss in settings_of(kind)]
LENGTHS = {"chosen_lengths": torch.tensor([3.0, 5.0, 2.0, 7.0]), "rejected_lengths": torch.tensor([4.0, 2.0, 2.0, 9.0])}


def pairs(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-5 * torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_the_declared_value_holds_where_policy_equals_reference(loss: PreferenceLoss) -> None:
    chosen, rejected, *_ = pairs()
    terms = loss(chosen, rejected, chosen, rejected, **LENGTHS)
    assert terms.preference.tolist() == pytest.approx([loss.value_at_reference] * 4, rel=1e-12)
    assert terms.chosen_rewards.tolist() == terms.rejected_rewards.tolist() == [0.0] * 4


def test_the_declared_values_are_the_known_ones() -> None:
    known = {kind: PreferenceLoss(kind, 0.1).value_at_reference for kind in KINDS}
    ln2 = math.log(2)
    assert known == pytest.approx(
        {"sigmoid": ln2, "cdpo": ln2, "robust": ln2, "hinge": 1.0, "ipo": 25.0, "ipo_avg": 25.0, "sigmoid_avg": ln2}
    )


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_at_the_start_the_chosen_answer_is_pushed_up_and_the_rejected_down(loss: PreferenceLoss) -> None:
    chosen, rejected, *_ = (x.requires_grad_() for x in pairs())
    terms = loss(chosen, rejected, chosen.detach(), rejected.detach(), **LENGTHS)
    up, down = torch.autograd.grad(terms.losses.sum(), (chosen, rejected))
    assert (up < 0).all()
    assert (down > 0).all()


@pytest.mark.parametrize("loss", [*ALL, PreferenceLoss("sigmoid", 0.1, nll_weight=0.5)], ids=str)
def test_gradients_pass_a_numerical_check(loss: PreferenceLoss) -> None:
    policy = [x.requires_grad_() for x in pairs(1)[:2]]
    reference = pairs(2)[:2]
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, *reference, **LENGTHS).losses, policy)


def test_only_the_distance_to_the_reference_matters() -> None:
    a, b, c, d = pairs()
    for loss in (PreferenceLoss("sigmoid"), PreferenceLoss("ipo"), PreferenceLoss("hinge")):
        torch.testing.assert_close(loss(a + 1, b - 2, c + 1, d - 2).losses, loss(a, b, c, d).losses)


def test_averaged_kinds_do_not_depend_on_length_but_summed_ones_do() -> None:
    a, b, c, d = pairs()
    twice = {name: 2 * length for name, length in LENGTHS.items()}
    for kind in ("ipo_avg", "sigmoid_avg"):
        loss = PreferenceLoss(kind)
        torch.testing.assert_close(loss(2 * a, 2 * b, 2 * c, 2 * d, **twice).losses, loss(a, b, c, d, **LENGTHS).losses)
    loss = PreferenceLoss("ipo")
    assert not torch.allclose(loss(2 * a, 2 * b, 2 * c, 2 * d).losses, loss(a, b, c, d).losses)


def test_smoothing_of_zero_is_plain_dpo() -> None:
    a, b, c, d = pairs()
    plain = PreferenceLoss("sigmoid", 0.3)(a, b, c, d).losses
    torch.testing.assert_close(PreferenceLoss("cdpo", 0.3)(a, b, c, d).losses, plain)
    torch.testing.assert_close(PreferenceLoss("robust", 0.3)(a, b, c, d).losses, plain)


def test_robust_is_unbiased_under_the_label_flips_it_assumes() -> None:
    a, b, c, d = pairs()
    e = 0.2
    loss = PreferenceLoss("robust", 0.3, e)
    expected = (1 - e) * loss(a, b, c, d).losses + e * loss(b, a, d, c).losses
    torch.testing.assert_close(expected, PreferenceLoss("sigmoid", 0.3)(a, b, c, d).losses)


def test_nll_is_added_and_reported_apart() -> None:
    a, b, c, d = pairs()
    plain = PreferenceLoss("sigmoid")(a, b, c, d)
    assert plain.nll is None
    terms = PreferenceLoss("sigmoid", nll_weight=0.5)(a, b, c, d, **LENGTHS)
    torch.testing.assert_close(terms.preference, plain.losses)
    torch.testing.assert_close(terms.nll, -a / LENGTHS["chosen_lengths"])
    torch.testing.assert_close(terms.losses, terms.preference + 0.5 * terms.nll)


def test_settings_without_meaning_are_refused() -> None:
    a, b, c, d = pairs()
    with pytest.raises(ValueError, match=r"no preference loss named 'dpo'"):
        PreferenceLoss("dpo")
    with pytest.raises(ValueError, match="beta"):
        PreferenceLoss(beta=0.0)
    with pytest.raises(ValueError, match=r"sigmoid has no label_smoothing; .* cdpo, robust"):
        PreferenceLoss("sigmoid", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5"):
        PreferenceLoss("cdpo", label_smoothing=0.5)
    with pytest.raises(ValueError, match="nll_weight"):
        PreferenceLoss(nll_weight=-1)
    with pytest.raises(ValueError, match="needs chosen_lengths"):
        PreferenceLoss("ipo_avg")(a, b, c, d)
    with pytest.raises(ValueError, match="one shape"):
        PreferenceLoss()(a, b, c, d[:2])
