"""The fast form of a model is the model: the same logits and gradients, with less work, and nothing else is touched."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coprobe.attacks import AdversarialExamples, parse
from coprobe.core.engine import frozen
from coprobe.errors import RunError
from coprobe.fast.classifier import FastClassifier, fast
from coprobe.fast.layout import layout_of
from coprobe.metrics import Accuracy
from coprobe.models import Classifier
from tests.fast.networks import (
    Wilful,
    assert_same,
    catalogued,
    classifier,
    close,
    images,
    norms,
    pair,
    passed,
    refuse,
    sequential,
)  # fmt: skip
from tests.toys import grey

# The model that was given.


def image_of(model: nn.Module) -> Any:
    """All that could be changed about a model."""
    modules = dict(model.named_modules())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    of_tensors = {
        name: (id(t), t.numpy(force=True).tobytes(), t.dtype, t.stride(), t.requires_grad, t.grad)
        for name, t in tensors.items()
    }
    of_modules = {name: (id(m), type(m), m.training, sorted(vars(m))) for name, m in modules.items()}
    hooks = {name: [len(v) for key, v in vars(m).items() if key.endswith("_hooks")] for name, m in modules.items()}
    return of_tensors, of_modules, hooks


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize(
    "make", [lambda: catalogued("resnet18"), lambda: classifier(Wilful()), lambda: classifier(Stubborn())]
)
def test_the_model_that_is_given_is_left_as_it_is(make: Callable[[], Classifier], precision: str) -> None:
    model = make().train()
    next(model.network.modules()).eval()
    next(model.parameters()).requires_grad_(False)
    before, random = image_of(model), torch.get_rng_state()
    products = torch.backends.cuda.matmul.fp32_precision
    made = fast(model, images=images(), precision=precision, say=lambda text: None)
    with frozen(made):
        made(images())
    assert image_of(model) == before and torch.equal(torch.get_rng_state(), random)
    assert torch.backends.cuda.matmul.fp32_precision == products
    if isinstance(made, FastClassifier):
        mine = {id(tensor) for tensor in model.network.state_dict(keep_vars=True).values()}
        assert not mine & {id(tensor) for tensor in made.network.state_dict(keep_vars=True).values()}
        assert not any(module.training for module in made.modules())
        assert not any(parameter.requires_grad for parameter in made.parameters())


def test_its_layout_is_the_fast_one_and_its_gradients_are_those_of_the_model() -> None:
    model, y = catalogued("resnet18"), torch.arange(4)
    made = fast(model, images=images(), say=refuse)
    weight = made.network.get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=layout_of(model.network))
    gradients: list[Tensor] = []
    for one in (model, made):
        x = images().requires_grad_()
        with frozen(one):
            gradients += torch.autograd.grad(cross_entropy(one(x), y), x)
    close(gradients[1], gradients[0])
    assert list(made.state_dict()) == [f"network.{name}" for name in made.network.state_dict()]


# Where it can't be had.


class Stubborn(nn.Module):
    """Can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.body = sequential(*pair())

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("I am unique")

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Inspector(nn.Module):
    """Computes something else when a batch norm has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = sequential(*pair())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + sum(isinstance(module, nn.BatchNorm2d) for module in self.modules())


class Counting(nn.Module):
    """Computes something else in every copy."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.copies = sequential(*pair()), 0

    def __deepcopy__(self, memo: Any) -> Counting:
        other = Counting()
        other.body, other.copies = copy.deepcopy(self.body, memo), 1
        return other

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.copies


def test_a_network_that_cannot_be_copied_runs_as_it_is() -> None:
    said: list[str] = []
    model = classifier(Stubborn())
    made = fast(model, images=images(), precision="bf16", say=said.append)
    assert said == ["the model runs as it is, not in its fast form: TypeError: I am unique"]
    assert type(made) is Classifier and made.network is model.network and made.precision == "bf16"


def test_a_form_that_would_differ_is_caught() -> None:
    said: list[str] = []
    model = classifier(Inspector())
    made = fast(model, images=images(), say=said.append)
    assert isinstance(made, FastClassifier) and norms(made) == ["body.1"]
    assert_same(model, made, images())
    (text,) = said
    assert text.startswith("batch norm is not folded into convolutions: DifferentError: the logits would differ by 0.")
    said.clear()
    model = classifier(Counting())
    assert type(fast(model, images=images(), say=said.append)) is Classifier
    assert len(said) == 1 and said[0].startswith("the model runs as it is, not in its fast form: DifferentError")


class Shifted(nn.Module):
    """Every copy has other activations in its middle, and the same logits."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 5)
        self.shift = shift

    def __deepcopy__(self, memo: Any) -> Shifted:
        other = Shifted(self.shift + 1)
        other.load_state_dict(self.state_dict())
        with torch.no_grad():
            other.first.bias += 1
        return other

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.mean((2, 3))) - self.shift)


def test_activations_that_would_differ_are_caught() -> None:
    said: list[str] = []
    model = classifier(Shifted())
    assert isinstance(fast(model, images=images(), say=refuse), FastClassifier)
    assert type(fast(model, images=images(), nodes=["first"], say=said.append)) is Classifier
    assert len(said) == 1 and "node 'first' would differ by" in said[0]


def test_it_warns_where_nobody_is_told() -> None:
    with pytest.warns(UserWarning, match="the model runs as it is"):
        fast(classifier(Stubborn()), images=images())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_the_business_of_others(value: float) -> None:
    model = catalogued("resnet18")
    model.network.get_parameter("layer1.0.conv1.weight").data[0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = fast(model, images=images(), nodes=["A"])
    assert isinstance(made, FastClassifier)

    examples = AdversarialExamples(made, grey(4), [parse("fgsm", 8 / 255)])
    with pytest.raises(RunError, match="not finite"):
        Accuracy(attacks=("fgsm",)).measure(made, examples)


def test_random_networks_draw_the_same_numbers() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = sequential(*pair())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + torch.randn(len(x), 1, device=x.device)

    model = classifier(Noisy())
    made = fast(model, images=images(), say=refuse)
    assert norms(made) == []


# Compiled.


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler here")
def test_compiled_passes_are_the_same() -> None:
    torch.manual_seed(0)
    model, x, y = classifier(sequential(*pair())), images(), torch.arange(4)
    made = fast(model, images=x, compiled=True, say=refuse)
    assert list(made.state_dict()) == [f"network.{name}" for name in made.network.state_dict()]
    gradients: list[Tensor] = []
    for one in (model, made):
        given = x.clone().requires_grad_()
        with frozen(one):
            logits = one(given)
            gradients += torch.autograd.grad(cross_entropy(logits, y), given)
        close(logits.detach(), model(x).detach())
    close(gradients[1], gradients[0])


def test_passes_are_compiled_where_nothing_is_recorded_or_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[Tensor] = []

    def compile(network: nn.Module, **settings: Any) -> Callable[[Tensor], Tensor]:
        return lambda given: (passes.append(given), network(given))[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch, "compile", compile)
    model, x = classifier(sequential(*pair())), images()
    made = fast(model, images=x, compiled=True, say=refuse)
    passes.clear()
    passed(made, x, [])
    assert len(passes) == 1
    assert_same(model, made, x, ["2"])  # two passes are recorded or masked
    assert len(passes) == 1


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InductorError

    def compile(network: nn.Module, **settings: Any) -> Callable[[Tensor], Tensor]:
        def fail(given: Tensor) -> Tensor:
            raise InductorError(RuntimeError("No working C++ compiler found"), None)  # type: ignore[arg-type]

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    made = fast(classifier(sequential(*pair())), compiled=True)
    with pytest.raises(RunError, match=r"^torch.compile fails \(InductorError: .*compiler.*\); leave out --compile$"):
        made(images())
