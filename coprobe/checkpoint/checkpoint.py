"""A checkpoint: a model, what is known about it, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coprobe._version import __version__
from coprobe.checkpoint.class_order import match_classes
from coprobe.checkpoint.description import CLASS_NAME, CLASSES, FORMAT
from coprobe.checkpoint.normalisation import OUR_FILE
from coprobe.checkpoint.reader import seal
from coprobe.core.files import atomic
from coprobe.core.provenance import digest_tensors
from coprobe.data import Dataset
from coprobe.errors import InputError
from coprobe.models import ARCHITECTURES, Classifier, build, defaults
from coprobe.models.shapes import trial

_OTHERS = "choose the --data it was trained on"


@dataclass
class Checkpoint:
    """A model and what is known about it.

    Attributes:
        model: images N×C×H×W in [0, 1] to logits, in evaluation mode on the CPU if it comes from a file;
            normalisation is part of it.
        arch: name in `coprobe.models.ARCHITECTURES`, `torchvision:…`, `timm:…`, `robustbench:…`, the factory that
            was named, or the class of a network that was given.
        arch_args: arguments of the architecture (width, num_classes, in_channels, …).
        recipe: how it was trained, as in `recipe.json`; empty for other people's checkpoints.
        metrics: what was measured when it was saved (epoch, accuracies).
        image_shape: (channels, height, width) of the images it was trained on; None if unknown.
        classes: names of the classes it was trained on, in the order of the logits; empty if unknown.
        path: the file it came from.
        container: kind of file (`zip`, `legacy pickle`, `plain pickle`, `safetensors`), `none` without a file.
        layout: where in the file the weights were and which prefixes were removed, in words.
        evidence: how the architecture is known ("named in the file", "names and shapes of 122 weights", "--arch").
        normalised_by: what says how images are normalised ("the file", "'mu' and 'sigma' of the file",
            "--mean/--std", "inside the network"); empty if nothing does.
        notes: what a person should know about the file, a sentence each.
        training_facts: what someone else's file says of its training, as plain values.
        undecided: arguments of the architecture that names and shapes can't tell, and the values they may have.
        allowed_mismatch: names of the weights that a person allowed to be `missing` or `unexpected`.
        doubts: those of the notes that results depend on, so that every command says them.
        images_may_decide: whether clean images may overrule how images are normalised, since nothing says it, or only
            what stands beside the weights does.
        decided: what clean images have decided of the network and its normalisation, by name.
        tried_shape: whether `image_shape` is only one that the network takes, and no fact about its training.
    """

    model: Classifier
    arch: str
    arch_args: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] = ()
    path: Path | None = None
    container: str = ""
    layout: str = ""
    evidence: str = ""
    normalised_by: str = ""
    notes: tuple[str, ...] = ()
    training_facts: dict[str, Any] = field(default_factory=dict)
    undecided: dict[str, list[Any]] = field(default_factory=dict)
    allowed_mismatch: dict[str, list[str]] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    images_may_decide: bool = False
    decided: dict[str, Any] = field(default_factory=dict)
    tried_shape: bool = False

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return int(self.arch_args["num_classes"])

    @property
    def in_channels(self) -> int:
        """Number of image channels."""
        return int(self.arch_args["in_channels"])

    @property
    def training_epsilon(self) -> float | None:
        """Radius of the perturbations that it was trained on, a fraction; None without any, and if nothing says it."""
        eps = self.recipe.get("eps_train")
        if self.recipe.get("method") == "clean" or not isinstance(eps, int | float) or not 0 < eps <= 255:
            return None
        return eps / 255

    @property
    def whole_arch_args(self) -> dict[str, Any]:
        """The arguments of the architecture with those that have their default values."""
        return {**(defaults(self.arch) if self.arch in ARCHITECTURES else {}), **self.arch_args}

    @property
    def is_own(self) -> bool:
        """Whether it comes from a file that coprobe wrote, which says everything."""
        return self.normalised_by == OUR_FILE

    @property
    def min_image_size(self) -> int:
        """The smallest side of images in pixels, as far as it is known."""
        return int(getattr(self.model.network, "min_image_size", 1))

    @property
    def digest(self) -> str:
        """Digest of the weights as they are now, as float32: the same whatever file they are in."""
        return digest_tensors(self._weights(), torch.float32)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The state dict without what some modules keep there besides tensors."""
        state = self.model.network.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}

    @property
    def stage(self) -> str:
        """Which of its run's checkpoints it is ("last epoch (30)"); empty where the file doesn't say."""
        selected, epoch = self.metrics.get("selected"), self.metrics.get("epoch")
        return f"{selected[:40]} ({epoch})" if isinstance(selected, str) and isinstance(epoch, int) else ""

    def check_fit(self, images: str, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """Raise `InputError` unless the model can judge such images.

        Args:
            images: what they are called.
            num_classes: how many classes they have.
            image_shape: (channels, height, width).
        """
        if num_classes != self.num_classes:
            raise InputError(f"{images} has {num_classes} classes and the model {self.num_classes} logits; {_OTHERS}")
        self.check_shape(images, image_shape)

    def check_shape(self, images: str, image_shape: tuple[int, int, int]) -> None:
        """Raise `InputError` unless the model takes images of this shape, see `check_fit`."""
        channels, height, width = image_shape
        if channels != self.in_channels:
            raise InputError(
                f"{images} has images of {channels} channels and the model takes {self.in_channels}; {_OTHERS}"
            )
        if min(height, width) < self.min_image_size:
            raise InputError(
                f"{images} has images of {height}×{width} pixels; {self.arch} needs at least {self.min_image_size}; "
                f"{_OTHERS}"
            )
        if not self.image_shape or self.image_shape[1:] == (height, width):
            return
        own = self.image_shape[1:]
        if self.tried_shape:
            try:
                trial(self.model, image_shape)
            except InputError as error:
                raise InputError(f"{error}, or pass --image-size {own[0]}x{own[1]}, which it takes") from None
            return
        trained = "×".join(map(str, own))
        raise InputError(
            f"{images} has images of {height}×{width} pixels, but the model was trained on {trained}; {_OTHERS}, "
            f"or bring them to that size with --image-size {own[0]}x{own[1]}"
        )

    def suited(self, dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
        """The images as the model takes them, and sentences on what that changed.

        Grey images out of files get three channels where it takes three, and those in colour one where it takes one;
        labels become numbers of logits where both sides name their classes.

        Raises:
            InputError: only some of the names are those of the model's classes, see `match_classes`.
        """
        before = dataset.image_shape[0]
        dataset = dataset.with_channels(self.in_channels)
        made_grey = dataset.image_shape[0] < before
        try:
            match = match_classes(self.classes, dataset.classes)
        except InputError as error:
            raise InputError(f"{dataset.name} ({dataset.split}): {error}") from None
        if match.places is not None:
            dataset = replace(dataset, labels=torch.tensor(match.places)[dataset.labels], classes=self.classes)
        said = "the model takes grey images, so those in colour are made grey" * made_grey
        return dataset, tuple(filter(None, (said, match.sentence)))

    def facts(self) -> dict[str, Any]:
        """What goes into the provenance of every result made with this checkpoint."""
        path = str(self.path) if self.path else None
        facts: dict[str, Any] = {"checkpoint": path, "checkpoint_digest": self.digest, "stage": self.stage or None}
        more = {"allowed_mismatch": self.allowed_mismatch, "decided_by_images": self.decided}
        return {**facts, **{key: value for key, value in more.items() if value}}

    def variant(self, arch_args: Mapping[str, Any]) -> Checkpoint:
        """The same weights in a network of ours with other arguments, which change no name and no shape."""
        whole = {**self.arch_args, **arch_args}
        with torch.device("meta"):
            network = build(self.arch, **whole)
        network.load_state_dict(self.model.network.state_dict(), assign=True)
        model = Classifier(network, self.model.mean, self.model.std, channel_axes=self.model.channel_axes)
        left = {name: values for name, values in self.undecided.items() if name not in arch_args}
        return replace(self, model=model.train(self.model.training), arch_args=whole, undecided=left)

    def save(self, path: str | Path) -> None:
        """Write to `path`, atomically; `.safetensors` by suffix, else what `torch.load(weights_only=True)` reads."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self._weights().items()}
        about = {
            "format": FORMAT,
            "coprobe": __version__,
            "arch": self.arch,
            "arch_args": self.arch_args,
            "preprocess": {"mean": self.model.mean, "std": self.model.std},
            "recipe": self.recipe,
            "metrics": self.metrics,
            "image_shape": None if self.tried_shape else self.image_shape,
            "classes": [name[:CLASS_NAME] for name in self.classes] if len(self.classes) <= CLASSES else [],
        }
        with atomic(path) as temporary:
            if temporary.suffix == ".safetensors":
                from safetensors.torch import save

                # Not save_file: it makes files of mode 0600, whatever the umask.
                temporary.write_bytes(save(weights, {seal.ABOUT: json.dumps(about), seal.SEAL: seal.BLANK}))
                seal.seal_safetensors(temporary)
                return
            with temporary.open("wb") as file:  # an open file, so that a full disk is an OSError that says so
                torch.save({**about, "state_dict": weights}, file)
            seal.seal_archive(temporary)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
