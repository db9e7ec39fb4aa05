"""Networks in Python are as before when they have been probed and attacked, and results as they always are: whatever
their own methods do, whatever else the program has switched on, and however many threads probe them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import coprobe
from coprobe.attacks import parse
from coprobe.core.engine import frozen, products_in
from coprobe.core.switches import usual_torch
from coprobe.errors import InputError
from coprobe.nodes import record
from tests.attacks.small import fingerprint

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(12, 3, 10, 10, generator=GENERATOR)
LABELS = torch.arange(12) % 5
EPSILON = 8 / 255


class Lora(nn.Linear):
    """Merges on `eval()` and parts again on `train()`, as loralib's layers do."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__(features, out)
        self.down = nn.Parameter(torch.randn(2, features, generator=GENERATOR))
        self.up = nn.Parameter(torch.randn(out, 2, generator=GENERATOR))
        self.merged = False

    def train(self, mode: bool = True) -> Lora:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down).data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        low_rank = 0 if self.merged else x @ self.down.T @ self.up.T
        return super().forward(x) + low_rank


class Adapting(nn.BatchNorm2d):
    """Normalises by the batch also in evaluation, and keeps track of it (test-time adaptation)."""

    def train(self, mode: bool = True) -> Adapting:
        return super().train(True)


class Replaced(nn.Module):
    """Puts another layer into its place on `eval()`, and never the first one back."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(8, 8, 1)
        self.seen: list[str] = []

    def eval(self) -> Replaced:
        super().eval()
        self.seen.append("eval")
        self.branch = nn.Conv2d(8, 8, 1).requires_grad_(False)
        nn.init.dirac_(self.branch.weight)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x)


class Counting(nn.Module):
    """Writes into a buffer in every pass, in place, and puts a new one into another's place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.mean = 0.9 * self.mean + x.detach().mean((0, 2, 3))
        return x


class Functional(nn.Module):
    """Batch statistics by a function that no mode reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.mean, self.var, training=True)


def around(middle: nn.Module, head: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head or nn.Linear(8, 5)
    )


class Outer(nn.Module):
    """Its own `eval()`, which only who calls it on this very module runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = around(Adapting(8), Lora(8, 5))

    def eval(self) -> Outer:
        super().eval()
        self.body[2].sharp = True  # type: ignore[union-attr]
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def frozen_by_hand() -> nn.Module:
    network = around(nn.Identity())
    network.train = lambda mode=True: network  # type: ignore[assignment,misc]
    return network


LIVE: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: around(nn.BatchNorm2d(8)),
    "LoRA": lambda: around(nn.BatchNorm2d(8), Lora(8, 5)),
    "batch norm in training mode": lambda: around(Adapting(8)),
    "a layer replaced": lambda: around(Replaced()),
    "buffers written to": lambda: around(Counting()),
    "functional batch norm": lambda: around(Functional()),
    "its own eval": Outer,
    "a method put in its place": frozen_by_hand,
}


def state(network: nn.Module) -> Any:
    """Everything that may not change, and where each tensor lies."""
    places = [(name, id(t), t.data_ptr()) for name, t in network.state_dict(keep_vars=True).items()]
    own = [
        (name, {k: v if isinstance(v, bool | int | str) else repr(v) for k, v in vars(module).items() if k[0] != "_"})
        for name, module in network.named_modules()
    ]
    return fingerprint(network), places, own, [id(module) for module in network.modules()]


def with_traces(network: nn.Module) -> nn.Module:
    """In mixed modes, with gradients, a frozen weight and hooks."""
    nn.Module.train(network)
    next(iter(network.children())).training = False
    first, *_, last = network.parameters()
    first.requires_grad_(False)
    last.grad = torch.randn(last.shape, generator=GENERATOR)
    next(iter(network.children())).register_forward_hook(lambda module, inputs, output: None)
    return network


USES: dict[str, Callable[[nn.Module], object]] = {
    "diagnose": lambda network: probe(network).diagnose(),
    "plain": lambda network: probe(network, plain=True).mask("A", percent=20, attacks=("fgsm",)),
    "wrap": coprobe.wrap,
    "an attack": lambda network: parse("pgd:2", EPSILON)(network, IMAGES, LABELS),
    "its steps": lambda network: [*parse("pgd:2", EPSILON).steps(network, IMAGES, LABELS)],  # type: ignore[attr-defined]
}


def probe(network: Any, **settings: Any) -> coprobe.Probe:
    return coprobe.Probe(network, (IMAGES, LABELS), EPSILON, say=lambda text: None, **settings)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", LIVE)
def test_a_network_is_as_before_bit_by_bit(kind: str, use: str) -> None:
    network = with_traces(LIVE[kind]())
    before = state(network)
    USES[use](network)
    assert state(network) == before


@pytest.mark.parametrize("kind", [kind for kind in LIVE if kind != "a layer replaced"])
def test_what_is_probed_is_the_network_in_its_own_evaluation_mode(kind: str) -> None:
    network, twin = (with_traces(LIVE[kind]()) for _ in range(2))
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        wanted = twin.eval()(IMAGES)
        with frozen(network):
            found = network(IMAGES)
    assert torch.equal(found, wanted)


def test_the_next_step_of_training_gets_the_gradients_of_an_unprobed_network() -> None:
    gradients = []
    for probed in (True, False):
        torch.manual_seed(1)
        network = LIVE["LoRA"]().train()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
        if probed:
            probe(network).evaluate(("fgsm",))
        nn.functional.cross_entropy(network(IMAGES), LABELS).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(one is not None and torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_after_an_exception_it_is_as_before_and_handles_still_work() -> None:
    network = with_traces(LIVE["LoRA"]())
    before = state(network)
    handle = network[0].register_forward_hook(lambda module, inputs, output: None)  # type: ignore[index]
    with pytest.raises(KeyError), frozen(network):
        raise KeyError
    handle.remove()
    assert state(network) == before


class Tagged(Tensor):
    """A subclass of tensors, as other libraries have them."""


class Checkpointed(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.how = around(nn.BatchNorm2d(8)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "vmap":
            return torch.vmap(lambda image: self.body(image[None])[0])(x)
        if self.how == "subclass":
            return self.body(x).as_subclass(Tagged)
        return checkpoint(self.body, x, use_reentrant=self.how == "reentrant")


def measured(network: nn.Module, **settings: Any) -> list[Any]:
    made = probe(network, **settings)
    frames = [
        made.evaluate(("fgsm", "pgd:2")).frame,
        made.mask("body.2", percent=20, attacks=("fgsm",)).evaluation.frame,
    ]
    return [*(frame["correct"].tolist() for frame in frames), made.activations(["body.2"]).frame.round(9).to_dict()]


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SWITCHED: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64": float64,
    "another device": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def usual() -> list[Any]:
    return measured(Checkpointed("not reentrant"))


@pytest.mark.parametrize("switch", SWITCHED)
def test_whatever_is_switched_on_results_are_the_same(switch: str, usual: list[Any]) -> None:
    network = Checkpointed("not reentrant")
    with SWITCHED[switch]():
        before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        images, labels = IMAGES + 0 if switch != "another device" else IMAGES, LABELS
        found = coprobe.Probe(network, (images, labels), EPSILON, say=lambda text: None)
        assert measured(network) == usual
        crafted = parse("pgd:2", EPSILON)(network, images, labels)
        assert before == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert found.dataset.digest() == probe(network).dataset.digest()
    assert torch.equal(crafted, parse("pgd:2", EPSILON)(network, IMAGES, LABELS))


def test_networks_that_use_such_parts_give_the_same_results_or_a_sentence(usual: list[Any]) -> None:
    assert measured(Checkpointed("subclass")) == usual
    folded = Checkpointed("vmap")
    assert probe(folded).evaluate(("fgsm", "pgd:2")).frame["correct"].tolist() == usual[0]
    with pytest.raises(InputError, match=r"node 'body.2' is computed inside torch.vmap or the like, where the rows"):
        probe(folded).activations(["body.2"])
    with pytest.raises(InputError, match="use_reentrant=True, which gives no gradients of images; set use_reentrant=F"):
        probe(Checkpointed("reentrant")).evaluate(("fgsm",))
    with pytest.raises(InputError, match="use_reentrant=True"):
        parse("cw:2", EPSILON)(Checkpointed("reentrant"), IMAGES, LABELS)
    with torch.inference_mode():
        born = Checkpointed("not reentrant")
    with pytest.raises(InputError, match=r"was built in torch.inference_mode\(\), so no gradient goes through it"):
        probe(born)
    tagged = coprobe.Probe(folded, (IMAGES.as_subclass(Tagged), LABELS.as_subclass(Tagged)), say=lambda text: None)
    assert type(tagged.first_images(1)) is Tensor


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad])
def test_inside_a_transform_of_functions_it_is_refused(transform: Any) -> None:
    made = probe(Checkpointed("not reentrant"))

    def inside(x: Tensor) -> Tensor:
        made.evaluate(("fgsm",))
        return x.sum()

    with pytest.raises(InputError, match=r"called inside torch.vmap, torch.func.grad or the like; call it outside"):
        transform(inside)(torch.ones(3))


def test_products_are_exact_on_a_processor_that_would_round_them() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        switch = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        assert switch.fp32_precision == "bf16"
        with products_in("32"):
            assert switch.fp32_precision == "ieee"
        assert switch.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", ["plain", "LoRA"])
def test_threads_that_share_a_network_find_what_one_finds(kind: str, plain: bool) -> None:
    network = with_traces(LIVE[kind]())
    network.append(nn.TransformerEncoderLayer(5, 1, 8))  # type: ignore[operator]  # whose shortcut is a switch for all
    shared, before = coprobe.wrap(network), state(network)
    shortcut = torch.backends.mha.get_fastpath_enabled()

    def work() -> Any:
        made = probe(shared, plain=plain)
        masked = made.mask("A", percent=20, compare=("variance",), attacks=("pgd:2",))
        return masked.evaluation.frame["correct"].tolist(), made.activations().frame.to_dict()

    alone, found = work(), [None] * 3

    def keep(place: int) -> None:
        found[place] = work()

    threads = [threading.Thread(target=keep, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 3
    assert state(network) == before and torch.backends.mha.get_fastpath_enabled() == shortcut


def test_threads_that_switch_torch_take_turns() -> None:
    found: list[Any] = []

    def work() -> None:
        for _ in range(50):
            with usual_torch():
                found.append(torch.empty(0).dtype)

    with float64():
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() == torch.float64
    assert set(found) == {torch.float32}


def test_recording_by_hand_leaves_modes_to_the_person() -> None:
    network = LIVE["plain"]().train()
    with record(network, ["2"]) as seen:
        network(IMAGES)
    assert network.training and seen["2"].shape[:2] == (12, 8)
