"""Adversarial examples of a data set against one model, crafted once and used by everything that needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from coprobe.attacks.base import Attack
from coprobe.data import Dataset
from coprobe.engine import generator_for, in_batches

#: The spec under which a batch holds its unperturbed images.
CLEAN = "clean"


def clean_images(dataset: Dataset, start: int, stop: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Images start … stop − 1 as floats in [0, 1] and their labels, on the device."""
    return dataset.images[start:stop].to(device).float().div_(255), dataset.labels[start:stop].to(device)


def attack_generator(seed: int, start: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of every attack on the batch that begins with image `start`."""
    return generator_for(seed, "attack", start, device=device)


@dataclass(frozen=True)
class AdversarialBatch:
    """Images and labels on the device; `images` maps an attack's spec, or `clean`, to a tensor N×C×H×W in [0, 1].

    `start` is the index of the first image in the data set.
    """

    start: int
    labels: Tensor
    images: dict[str, Tensor]


@dataclass
class AdversarialExamples:
    """Clean and adversarial images, batch by batch.

    Args:
        model: what is attacked (white box), images in [0, 1] to logits.
        dataset: what is perturbed.
        attacks: attacks with distinct specs.
        batch_size: images at once; None finds one that fits (see `engine.in_batches`).
        device: where the model is.
        seed: seeds the attacks, batch by batch.
        keep: hold what was crafted in host memory, so that a second pass crafts nothing again; without it
            memory does not grow with the data set and every pass crafts anew (the same images).
        progress: called with the number of images after every batch of a crafting pass.
    """

    model: nn.Module
    dataset: Dataset
    attacks: Sequence[Attack]
    batch_size: int | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    keep: bool = False
    progress: Callable[[int], None] | None = None
    _kept: list[AdversarialBatch] = field(default_factory=list, init=False, repr=False)

    def __iter__(self) -> Iterator[AdversarialBatch]:
        if self._kept:
            for batch in self._kept:
                images = {spec: images.to(self.device) for spec, images in batch.images.items()}
                yield AdversarialBatch(batch.start, batch.labels.to(self.device), images)
            return
        crafted: list[AdversarialBatch] = []
        for batch in in_batches(len(self.dataset), self._craft, batch_size=self.batch_size, device=self.device):
            if self.keep:
                images = {spec: images.cpu() for spec, images in batch.images.items()}
                crafted.append(AdversarialBatch(batch.start, batch.labels.cpu(), images))
            yield batch
            if self.progress:
                self.progress(len(batch.labels))
        self._kept = crafted

    def _craft(self, start: int, stop: int) -> AdversarialBatch:
        clean, labels = clean_images(self.dataset, start, stop, self.device)
        images = {CLEAN: clean}
        for attack in self.attacks:
            generator = attack_generator(self.seed, start, self.device)
            images[attack.spec] = attack(self.model, clean, labels, generator=generator)
        return AdversarialBatch(start, labels, images)
