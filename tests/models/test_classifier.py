from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from coprobe.errors import InputError
from coprobe.models import Classifier, build

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_normalises_per_channel() -> None:
    network = build("resnet18", width=4).eval()
    classifier = Classifier(network, MEAN, STD)
    by_hand = torch.stack([(images()[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    torch.testing.assert_close(classifier(images()), network(by_hand))
    assert (classifier.mean, classifier.std) == (MEAN, STD)
    assert classifier.network is network


@pytest.mark.parametrize(("mean", "std"), [(None, None), ((0, 0, 0), (1, 1, 1)), (None, (1.0, 1.0, 1.0))])
def test_identity_hands_the_images_on_untouched(mean: tuple | None, std: tuple | None) -> None:
    given = images()
    assert torch.equal(Classifier(nn.Identity(), mean, std)(given), given)


class InPlace(nn.Module):
    """Normalises the images that it is given, instead of copies of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub_(0.5).div_(0.25).flatten(1)


@pytest.mark.parametrize(("mean", "std"), [(None, None), ((0, 0, 0), (1, 1, 1)), ((0.1, 0.1, 0.1), None)])
def test_a_network_that_works_in_place_changes_no_images(mean: tuple | None, std: tuple | None) -> None:
    given, before = images(), images()
    Classifier(InPlace(), mean, std)(given)
    assert torch.equal(given, before)


def test_one_of_the_two_is_enough() -> None:
    shifted = Classifier(nn.Identity(), mean=[0.5, 0.5, 0.5])
    assert shifted.std == (1.0, 1.0, 1.0)
    torch.testing.assert_close(shifted(images()), images() - 0.5)
    scaled = Classifier(nn.Identity(), std=[0.5, 0.5, 0.5])
    assert scaled.mean == (0.0, 0.0, 0.0)
    torch.testing.assert_close(scaled(images()), images() * 2)
    neither = Classifier(nn.Identity())
    assert (neither.mean, neither.std) == (None, None)


def test_only_the_network_has_weights_and_the_constants_follow_it() -> None:
    network = build("resnet18", width=4)
    classifier = Classifier(network, MEAN, STD)
    assert list(classifier.state_dict()) == [f"network.{name}" for name in network.state_dict()]
    assert classifier.double()(images().double()).dtype == torch.float64


def test_a_guessed_node_table_comes_along() -> None:
    table = {"A": "#relu1"}
    assert (
        Classifier(nn.Identity(), node_table=table).node_table == table and Classifier(nn.Identity()).node_table == {}
    )


def test_gradients_reach_the_images_through_the_scale() -> None:
    given = images().requires_grad_()
    Classifier(nn.Identity(), MEAN, STD)(given).sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad[0, :, 0, 0], 1 / torch.tensor(STD))


@pytest.mark.parametrize(
    ("mean", "std", "complaint"),
    [
        ((0.5,), (0.5,), "mean has 1 and std 1 channels where the images have 3"),
        (MEAN, (0.5, 0.5), "mean has 3 and std 2 channels"),
        ((), None, "mean has 0 and std 0 channels"),
        (None, (0.5, 0.5), "mean has 2 and std 2 channels"),
        (MEAN, (0.2, 0.0, 0.2), "not positive"),
        (MEAN, (0.2, -0.1, 0.2), "not positive"),
        (MEAN, (0.2, math.nan, 0.2), "not positive"),
        ((0.5, math.inf, 0.5), STD, "not finite"),
        ((125.3, 123, 113.9), (63.0, 62.1, 66.7), r"mean \(125.3, 123, 113.9\) is not .* divide mean and std by 255$"),
        ((0.5, -4.5, 0.5), STD, "divide mean and std by 255"),
    ],
)
def test_wrong_constants_are_refused(mean: tuple | None, std: tuple | None, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Classifier(build("resnet18", width=4), mean, std)
