"""Networks whose gradients say nothing, or that write into their input: counted, named, and harmless."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from coprobe.attacks import parse
from coprobe.errors import InputError
from tests.attacks.small import fingerprint, trained


class Before(nn.Module):
    """Does something to the images, in a module of its own, before a network sees them."""

    class First(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.change = change

        def forward(self, x: Tensor) -> Tensor:
            return self.change(x)

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = self.First(change)
        self.inner = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.first(x))
        return logits


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x + 0


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "no_grad": without_gradients,
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "comparison": lambda x: (x > 0.5).float(),
    "new": lambda x: torch.tensor(x.tolist(), requires_grad=True),
}


@pytest.mark.parametrize("cut", [name for name in CUTS if name != "new"])
@pytest.mark.parametrize("spec", ["fgsm", "pgd:2", "cw:2:rule=always", "pgd-eot:2:samples=2"])
def test_where_the_graph_ends_is_named(cut: str, spec: str) -> None:
    trained_model, x, y = trained()
    model = Before(trained_model, CUTS[cut])
    before = fingerprint(model)
    with pytest.raises(InputError) as error:
        parse(spec, 0.1)(model, x, y)
    assert str(error.value) == (
        "no gradient reaches the images: 'first' (First) cuts the graph, as detach(), .data, no_grad(), "
        "comparisons and numpy do; compute in torch there, or use attacks without gradients (square)"
    )
    assert fingerprint(model) == before


def test_a_graph_that_begins_anew_is_one_that_ends() -> None:
    model, x, y = trained()
    with pytest.raises(InputError, match="no gradient reaches the images: the network cuts the graph"):
        parse("fgsm", 0.1)(Before(model, CUTS["new"]), x, y)


def test_a_cut_in_the_forward_of_the_network_itself() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).detach()

    with pytest.raises(InputError, match="the network's own forward cuts the graph"):
        parse("fgsm", 0.1)(Cut(), torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "change", [lambda x: (x * 255).round() / 255, lambda x: (x * 8).floor() / 8, lambda x: (x - 0.5).sign()]
)
@pytest.mark.parametrize("spec", ["fgsm", "pgd:3", "pgd:3:rule=always", "cw:2", "pgd:2:restarts=2", "mi-fgsm:2"])
@pytest.mark.parametrize("plain", [False, True])
def test_gradients_that_vanish_are_counted(change: Callable[[Tensor], Tensor], spec: str, plain: bool) -> None:
    trained_model, x, y = trained()
    model = Before(trained_model, change)
    attack = parse(spec, 0.1)
    x_adv = attack(model, x, y, plain=plain)
    assert attack.blindness.images == len(x)  # type: ignore[attr-defined]
    start = parse(f"{spec}:start=zero", 0.1)
    unmoved = start(model, x, y, plain=plain)
    with torch.no_grad():
        right = (model(unmoved).argmax(1) == y).float().mean()
    assert torch.equal(unmoved, x), "it can't move an image"
    assert start.blindness.share == pytest.approx(float(right)) and right > 0.4  # type: ignore[attr-defined]
    assert torch.equal(x_adv, x) == (spec == "mi-fgsm:2"), "only its random start moves it"


def test_a_softmax_that_saturates_is_counted_image_by_image() -> None:
    """The gradient of the cross-entropy is zero where the other classes have the probability 0 in float32."""
    trained_model, x, y = trained()

    class Confident(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained_model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 50

    with torch.no_grad():
        logits = Confident()(x)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    expected = float((logits[torch.arange(len(y)), y] - others > 104).float().mean())  # e^-104 is 0 in float32
    attack = parse("pgd:3:start=zero", 0.001)
    attack(Confident(), x, y)
    assert 0.2 < expected < 0.9
    assert attack.blindness.share == pytest.approx(expected, abs=0.03)  # type: ignore[attr-defined]
    healthy = parse("pgd:3:start=zero", 0.001)
    healthy(trained_model, x, y)
    assert healthy.blindness.share == 0  # type: ignore[attr-defined]


class InPlace(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.sub_(0.5).mul_(2).clamp_(-1, 1))
        return logits


@pytest.mark.parametrize("spec", ["square", "apgd-ce", "fgsm", "pgd:3", "cw:2", "mi-fgsm:2"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_network_that_writes_into_its_input_is_attacked_like_one_that_does_not(spec: str, plain: bool) -> None:
    trained_model, x, y = trained()
    x, y = x[:12], y[:12]
    there, careful = InPlace(trained_model), Before(trained_model, lambda x: ((x - 0.5) * 2).clamp(-1, 1))
    attack = parse(spec, 8 / 255)
    given = x.clone()
    x_adv = attack(there, given, y, plain=plain)
    assert torch.equal(given, x)
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6
    assert torch.allclose(x_adv, attack(careful, x, y, plain=plain), rtol=0, atol=1e-6)
