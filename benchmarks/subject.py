"""What is benchmarked: a checkpoint, images and a device, and the options that name them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import coprobe
from benchmarks.timing import origin, shown
from coprobe.checkpoint import Checkpoint
from coprobe.core.engine import BatchSize
from coprobe.data import Dataset, load
from coprobe.models import Classifier, build

#: Images from which a fresh network gets the statistics of its batch norm.
SETTLING = 256


def options(description: str, *, images: int = 128, repeats: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark of a network has, with the defaults of this one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a fresh ResNet-18 if unset, which does for times")
    parser.add_argument("--width", type=int, default=64, help="of the fresh ResNet-18")
    parser.add_argument("--data", help="spec of a data set; random images if unset")
    parser.add_argument("--images", type=int, default=images, help="that are timed")
    parser.add_argument("--batch-size", type=int, default=128, help="of other libraries")
    parser.add_argument("--own-batch-size", type=int, help="coprobe's; if unset, what it takes by itself")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds, after one to warm up")
    parser.add_argument("--out", type=Path, help="file to add the tables to")
    return parser


def synthetic(images: int) -> Dataset:
    """Random images of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return Dataset(pixels, labels, tuple("0123456789"), "synthetic", "test")


def images_of(arguments: argparse.Namespace, count: int) -> Dataset:
    """So many images, as the options say."""
    return load(arguments.data, limit=count) if arguments.data else synthetic(count)


def fresh(width: int, dataset: Dataset) -> Checkpoint:
    """A ResNet-18 with random weights, and batch-norm statistics of these images."""
    torch.manual_seed(0)
    channels = dataset.image_shape[0]
    arguments = {"width": width, "num_classes": dataset.num_classes, "in_channels": channels}
    network = build("resnet18", **arguments)
    with torch.no_grad():
        for _ in range(10):
            network.train()(dataset.images[:SETTLING].float() / 255)
    return Checkpoint(Classifier(network), "resnet18", arguments, image_shape=dataset.image_shape)


@dataclass(frozen=True)
class Subject:
    """A checkpoint with images, on a device; `of` makes it from the options."""

    checkpoint: Checkpoint
    dataset: Dataset
    device: torch.device
    batch_size: int
    own_batch_size: int | None
    name: str

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Subject:
        """As the options say."""
        torch.set_num_threads(arguments.threads)
        dataset = images_of(arguments, arguments.images)
        if arguments.checkpoint:
            checkpoint, source = coprobe.load(arguments.checkpoint), f"`{shown(arguments.checkpoint)}`"
        else:
            checkpoint, source = fresh(arguments.width, dataset), "random weights"
        name = f"{checkpoint.arch} {checkpoint.arch_args}, {source}"
        device = torch.device(arguments.device)
        checkpoint.model.to(device).eval()
        return cls(checkpoint, dataset, device, arguments.batch_size, arguments.own_batch_size, name)

    @property
    def model(self) -> Classifier:
        """The network as it is stored, in evaluation mode on the device."""
        return self.checkpoint.model

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Images in [0, 1] and labels, on the device, as other libraries get them."""
        return self._in_batches(self.batch_size)

    @property
    def own_size(self) -> int:
        """How many images coprobe works on at once, where memory has room for them."""
        return BatchSize(self.own_batch_size, self.device).now

    @cached_property
    def own_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The same in coprobe's batches."""
        return self._in_batches(self.own_size)

    def _in_batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        x = self.dataset.images.to(self.device).float() / 255
        y = self.dataset.labels.to(self.device)
        return list(zip(x.split(size), y.split(size), strict=True))

    def about(self, *packages: str) -> list[str]:
        """What was measured where, with which versions, and how it was called."""
        images = f"{len(self.dataset)} images ({shown(self.dataset.name)})"
        sizes = f"in batches of {self.batch_size}, coprobe's of {self.own_size};"
        return [f"{self.name}, {images} {sizes}", *origin(self.device, *packages)]
