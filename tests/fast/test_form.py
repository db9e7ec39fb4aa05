"""All forms of a network compute the same, and each computes an image alike in whatever batch it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from coprobe.core.engine import FULL, frozen
from coprobe.fast.classifier import FastClassifier, fast
from coprobe.fast.form import PLAIN, Form, forms
from coprobe.fast.packed import Packed
from coprobe.fast.winograd import Winograd
from coprobe.models import Classifier, build
from tests.fast.networks import assert_same, classifier, close, images, refuse

#: Each with the kinds of its convolutions that are not torch's, in the resnet18 of width 8.
FORMS = {
    Form(): set(),
    PLAIN: set(),
    Form(channels_last=False): set(),
    Form(fold=False): set(),
    Form(winograd=16): {Winograd},
    Form(packed=True): {Packed},
    Form(winograd=32, packed=True): {Winograd, Packed},
}


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return classifier(build("resnet18", width=8))


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    points = x.clone().requires_grad_()
    with frozen(model):
        logits = model(points)
        return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), points)[0]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_computes_the_same(model: Classifier, form: Form) -> None:
    x = images(FULL + 4)
    made = fast(model, images=x, nodes=["B", "layer2.0.conv2"], form=form, say=refuse)
    assert isinstance(made, FastClassifier) and made.form == form
    assert {type(module) for module in made.modules()} & {Winograd, Packed} == FORMS[form]
    assert [path for path, _ in made.named_modules()] == [path for path, _ in model.named_modules()]
    assert_same(model, made, x, ["B", "layer2.0.conv2"])
    logits, back = gradient(made, x)
    close(logits, gradient(model, x)[0])
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(made)(x), logits)
    for part in (slice(0, FULL), slice(3, 3 + FULL)):
        assert torch.equal(gradient(made, x[part])[0], logits[part])
        assert torch.equal(gradient(made, x[part])[1], back[part])


def test_gradients_are_those_of_the_model(model: Classifier) -> None:
    """In float64 nothing is near enough to a kink of ReLU to be rounded to its other side."""
    x = images(FULL)
    exact = Classifier(copy.deepcopy(model.network).double(), model.mean, model.std).double()
    expected = gradient(exact, x.double())[1]
    for form in FORMS:
        found = gradient(fast(model, images=x, form=form, say=refuse), x)[1]
        assert (found - expected).norm() <= 1e-3 * expected.norm(), form


def test_others_who_have_a_hand_in_a_convolution_keep_it() -> None:
    shared, hooked = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    network = nn.Sequential(nn.Conv2d(3, 16, 1), shared, shared, hooked, nn.Conv2d(16, 16, 3, padding=1))
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)])
    model, x = classifier(network), images(side=8)
    for form, kind in ((Form(winograd=16), Winograd), (Form(packed=True), Packed)):
        made = fast(model, images=x, form=form, say=refuse)
        assert [path for path, module in made.network.named_modules() if isinstance(module, kind)] == ["4"]
        assert_same(model, made, x)


def test_which_forms_there_are() -> None:
    cpu, gpu, mps = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
    assert forms("32", cpu)[0] == Form(winograd=128) and PLAIN in forms("32", cpu)
    assert not any(form.winograd for form in forms("bf16", cpu)) and forms("bf16", cpu)[0] == Form()
    assert (PLAIN in forms("bf16", cpu)) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert forms("32", cpu, compiled=True) == forms("tf32", mps) == [Form()]
    assert forms("tf32", gpu) == [Form(), Form(channels_last=False)]
    assert [str(form) for form in (PLAIN, Form(winograd=64, packed=True))] == [
        "plain", "folded, channels-last, winograd from 64 channels, packed",
    ]  # fmt: skip
