"""Images of several sizes made one: resized until they cover it, and cropped at the centre."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from coprobe.data.bounds import short
from coprobe.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 4096
_WRITTEN = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?(?::(\d{1,5}))?(:bicubic)?")


@dataclass(frozen=True)
class ImageSize:
    """What torchvision's `Resize` and `CenterCrop` make of an image, as its and timm's models are evaluated.

    Attributes:
        height, width: of the images afterwards, in pixels.
        shorter: how many pixels their shorter side has before the crop; None if they just cover height × width.
        bicubic: how they are resized, as for most of timm's models; else bilinear, as for torchvision's. Both with
            antialiasing.
    """

    height: int
    width: int
    shorter: int | None = None
    bicubic: bool = False

    @classmethod
    def parse(cls, text: str) -> ImageSize:
        """Read `N`, `HxW`, `N:SHORTER` or `N:SHORTER:bicubic`; raises `InputError` for anything else."""
        found = _WRITTEN.fullmatch(text)
        if not found:
            raise InputError(f"--image-size {short(text)}: write N, HxW or N:SHORTER, as in 32, 32x64 or 224:256")
        height, width, shorter = (int(number) if number else None for number in found.groups()[:3])
        size = cls(height or 0, width or height or 0, shorter, bool(found[4]))
        if not all(1 <= side <= LARGEST for side in (size.height, size.width, shorter or 1)):
            raise InputError(f"--image-size {text}: sides have 1 to {LARGEST} pixels")
        if shorter is not None and shorter < max(size.height, size.width):
            raise InputError(f"--image-size {text}: the shorter side must have at least the pixels that are kept of it")
        return size

    def __str__(self) -> str:
        before = f"shorter side to {self.shorter}" if self.shorter else "until they cover it"
        how = "bicubic" if self.bicubic else "bilinear"
        return f"{self.height}×{self.width} (resized {before}, {how}, and cropped at the centre)"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image before the crop."""
        target = (self.shorter, self.shorter) if self.shorter else (self.height, self.width)
        if target[0] * width >= target[1] * height:
            return target[0], max(target[1], target[0] * width // height)
        return max(target[0], target[1] * height // width), target[1]

    def apply(self, image: Image) -> Image:
        """The image at this size."""
        from PIL.Image import Resampling

        height, width = self.resized(image.height, image.width)
        if (height, width) != (image.height, image.width):
            method = Resampling.BICUBIC if self.bicubic else Resampling.BILINEAR
            image = image.resize((width, height), method)
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        return image.crop((left, top, left + self.width, top + self.height))

    def apply_to(self, images: Tensor) -> Tensor:
        """Decoded images, uint8 N×C×H×W, at this size."""
        from PIL.Image import fromarray

        made = torch.empty((*images.shape[:2], self.height, self.width), dtype=torch.uint8)
        for row, channels in enumerate(images):
            for place, channel in enumerate(channels):
                made[row, place] = torch.from_numpy(np.array(self.apply(fromarray(channel.numpy()))))
        return made
