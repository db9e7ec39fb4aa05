"""What a file leaves open is taken from clean images where they clearly tell, and else stays as assumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coprobe.checkpoint import Checkpoint, load
from coprobe.checkpoint.fitting import Decision, fit
from coprobe.checkpoint.normalisation_check import check_normalisation
from coprobe.data import Dataset
from coprobe.models import Classifier, build
from coprobe.probe import Probe

CLASSES, SIDE = 4, 32
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def known_by(network: nn.Module, mean: Any = None, std: Any = None) -> tuple[nn.Module, Dataset]:
    """The network with batch norm like that of trained ones, and images most of which it gets right."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.rand(96, 3, 4, 4, generator=generator)
    images = nn.functional.interpolate(colours, SIDE, mode="bilinear")
    images = ((images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(0, 1) * 255).byte()
    model = Classifier(network, mean, std)
    x = images / 255
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.3, 0.3, generator=generator)
                module.momentum = None  # statistics of these images
        model.train()(x)
        (head,) = [m for m in network.modules() if isinstance(m, nn.Linear)]
        head.weight *= 30
        head.bias -= model.eval()(x).mean(0)  # no favourite class
        labels = model(x).argmax(1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    return network, Dataset(images, labels, tuple("abcd"), "random", "test")


def made(arch: str, **arch_args: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(arch, **{"width": 4, "num_classes": CLASSES, **arch_args})


def accuracy(checkpoint: Checkpoint, data: Dataset) -> float:
    with torch.no_grad():
        return float((checkpoint.model(data.images / 255).argmax(1) == data.labels).double().mean())


def right(network: nn.Module, data: Dataset, mean: Any = None, std: Any = None) -> Tensor:
    with torch.no_grad():
        return Classifier(network, mean, std).eval()(data.images / 255)


#: Networks whose weights have the names and shapes of others, and what they are normalised by.
VARIANTS: list[tuple[str, dict[str, Any], Any]] = [
    ("resnet18", {"stem": "pooled"}, None),
    ("resnet18", {"stem": "strided"}, IMAGENET),
    ("resnet18", {"activation": "silu"}, None),
    ("preact-resnet18", {"shortcut": "raw"}, IMAGENET),
    ("preact-resnet18", {"shortcut": "raw"}, None),
    ("resnet20", {"activation": "gelu"}, None),
    ("vgg11", {"activation": "silu"}, None),
]


@pytest.mark.parametrize(("arch", "variant", "normalised"), VARIANTS, ids=str)
def test_variant_and_normalisation_are_found_together(
    tmp_path: Path, arch: str, variant: dict[str, Any], normalised: Any
) -> None:
    mean, std = normalised or (None, None)
    network, data = known_by(made(arch, **variant), mean, std)
    torch.save(network.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    decision = fit(read, data)
    taken = decision.of(read)
    assert dict(decision.variant) == variant and taken.arch_args == {**read.arch_args, **variant}
    torch.testing.assert_close(taken.model(data.images[:4] / 255), right(network, data, mean, std)[:4])
    assert accuracy(taken, data) > 0.75 > accuracy(read, data) + 0.05
    (said,) = decision.sentences
    ((name, value),) = variant.items()
    assert said.startswith(f"took {name}={value}") and f"of {len(data)} clean images" in said
    assert f"{accuracy(taken, data):.1%}" in said and f"{accuracy(read, data):.1%}" in said
    assert f"pass --arch-arg {name}={value}" in said and ("--mean 0.485,0.456,0.406" in said) is bool(normalised)
    decided = {**variant, **({"normalisation": "ImageNet's"} if normalised else {})}
    assert taken.decided == taken.facts()["decided_by_images"] == decided
    assert taken.digest == read.digest and not taken.model.training
    # Once it is known, nothing is left to decide.
    assert fit(taken, data) == Decision(sentences=fit(taken, data).sentences)


def test_a_path_in_python_is_read_the_same_way(tmp_path: Path) -> None:
    network, data = known_by(made("preact-resnet18", shortcut="raw"))
    torch.save(network.state_dict(), tmp_path / "c.pt")
    with pytest.warns(UserWarning, match="took shortcut=raw"):
        probe = Probe(tmp_path / "c.pt", data)
    assert probe.checkpoint.decided == {"shortcut": "raw"} and accuracy(probe.checkpoint, data) > 0.75


def test_what_is_assumed_rightly_stays_without_a_word(tmp_path: Path) -> None:
    network, data = known_by(made("resnet18"))
    torch.save(network.state_dict(), tmp_path / "c.pt")
    assert fit(load(tmp_path / "c.pt"), data) == Decision()


def test_images_that_no_reading_fits_are_said(tmp_path: Path) -> None:
    network, data = known_by(made("resnet18"))
    torch.save(network.state_dict(), tmp_path / "c.pt")
    (said,) = fit(load(tmp_path / "c.pt"), replace(data, labels=(data.labels + 1) % CLASSES)).sentences
    assert said.startswith("no normalisation fits (at most ") and "classes in another order" in said


def test_what_images_cannot_tell_is_assumed_and_said(tmp_path: Path) -> None:
    """Without a weight that differs from zero, the shortcuts' convolutions add nothing, whatever they read."""
    network = made("preact-resnet18")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "shortcut" in name:
                weight.zero_()
    network, data = known_by(network)
    torch.save(network.state_dict(), tmp_path / "c.pt")
    decision = fit(load(tmp_path / "c.pt"), data)
    assert not decision.variant and decision.normalisation is None
    (said,) = decision.sentences
    assert said == (
        "assumed shortcut=preactivated, which the file doesn't say: shortcut=raw fits about as well on 96 clean images"
    )


def test_our_own_files_say_it_themselves(tmp_path: Path) -> None:
    network, data = known_by(made("preact-resnet18", shortcut="raw"))
    about = {"width": 4, "num_classes": CLASSES, "in_channels": 3}  # wrong, but said
    Checkpoint(Classifier(network).eval(), "preact-resnet18", about).save(tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    assert read.is_own and fit(read, data) == Decision()


def test_what_a_person_says_is_not_overruled(tmp_path: Path) -> None:
    network, data = known_by(made("preact-resnet18", shortcut="raw"), *IMAGENET)
    torch.save(network.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", arch="preact-resnet18", arch_args={"shortcut": "preactivated"})
    assert "shortcut" not in read.undecided
    assert not fit(read, data).variant
    read = load(tmp_path / "c.pt", mean=(0.45,) * 3, std=(0.25,) * 3)
    decision = fit(read, data)
    assert decision.normalisation is None and decision.variant == {"shortcut": "raw"}
    read = load(tmp_path / "c.pt", arch_args={"shortcut": "raw"}, mean=(0.1,) * 3, std=(0.9,) * 3)
    decision = fit(read, data)
    assert decision.normalisation is None and decision.sentences[0].startswith("normalised by --mean/--std it is right")


class Normalising(nn.Module):
    """A network that normalises images in its own forward pass, by numbers that no state dict shows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in IMAGENET)
        return self.network((x - mean) / std)


FACTORY = """
from coprobe.models import build
from tests.checkpoint.test_fitting import Normalising

def net():
    return Normalising(build("preact-resnet18", width=4, num_classes=4))
"""


def test_numbers_beside_the_weights_are_dropped_where_the_network_normalises_by_itself(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    network, data = known_by(made("preact-resnet18"), *IMAGENET)
    source = Normalising(network).eval()
    torch.save({"net": source.state_dict(), "mean": IMAGENET[0], "std": IMAGENET[1]}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt", model=f"{tmp_path / 'net.py'}:net")
    assert read.model.mean == IMAGENET[0] and read.images_may_decide  # as the file says
    decision = fit(read, data)
    taken = decision.of(read)
    assert decision.sentences[0].startswith("took no normalisation: so it is right on 79.2%")
    assert "with normalisation by 'mean' and 'std' beside the weights on " in decision.sentences[0]
    assert torch.equal(taken.model(data.images[:8] / 255), source(data.images[:8] / 255))
    assert taken.normalised_by == "clean images"


def test_a_normaliser_in_front_of_the_network_is_not_overruled(tmp_path: Path) -> None:
    network, data = known_by(made("preact-resnet18"))
    weights = {f"1.{name}": tensor for name, tensor in network.state_dict().items()}
    numbers = {f"0.{name}": torch.tensor(values) for name, values in zip(("mean", "std"), IMAGENET, strict=True)}
    torch.save({**numbers, **weights}, tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    assert not read.images_may_decide
    decision = fit(read, data)
    assert decision.normalisation is None
    assert decision.sentences[0].startswith("normalised by '0.mean' and '0.std' of the file it is right on ")


def test_no_more_than_some_hundred_images_are_looked_at(tmp_path: Path) -> None:
    """All readings see 32 images, six of them 256: within twice what four normalisations of one network take."""
    network, data = known_by(made("resnet18"))
    torch.save(network.state_dict(), tmp_path / "c.pt")
    read = load(tmp_path / "c.pt")
    many = data.subset([*range(96)] * 5)
    seen = []
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.append(len(args[0])) if isinstance(module, Classifier) else None
    )
    try:
        check = check_normalisation(read, many)
    finally:
        handle.remove()
    assert len(check.scores) <= 7 and all(len(score.correct) == 256 for score in check.scores)
    assert sum(seen) <= 24 * 32 + 7 * 256
