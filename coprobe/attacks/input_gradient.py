"""Gradients with respect to images, and how many of them say nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from coprobe.attacks.tally import Tally
from coprobe.errors import InputError


def input_gradient(model: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of each image's loss at the image, and the logits.

    Args:
        model: images to logits, frozen.
        images: float (batch, channels, height, width).
        loss: from logits to one number per image, (batch,).

    Raises:
        InputError: no gradient reaches the images; where in the network it ends is named.
    """
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        logits = model(points)
        # The sum, not the mean: each image's gradient then does not depend on the size of the batch.
        total = loss(logits).sum()
        gradient = torch.autograd.grad(total, points, allow_unused=True)[0] if total.requires_grad else None
    if gradient is None:
        raise InputError(
            f"no gradient reaches the images: {_end_of_graph(model, images)} cuts the graph, as detach(), .data, "
            "no_grad(), comparisons and numpy do; compute in torch there, or use attacks without gradients (square)"
        )
    return gradient, logits.detach()


def _end_of_graph(model: nn.Module, images: Tensor) -> str:
    """The innermost module that is given something with a graph and returns something without, in words."""
    ends: list[str] = []

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            given = [one for one in inputs if isinstance(one, Tensor)]
            if any(one.requires_grad for one in given) and isinstance(output, Tensor) and not output.requires_grad:
                ends.append(f"'{name}' ({type(module).__name__})" if name else "the network's own forward")

        return look

    network = getattr(model, "network", model)
    with ExitStack() as hooks, torch.enable_grad():
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_hook(watch(name, module)).remove)
        model(images[:1].detach().requires_grad_())
    return ends[0] if ends else "the network"


class Blindness(Tally):
    """How many images an attack was still to move where its gradient was exactly zero, so that it stood still.

    Attributes:
        images: how many it attacked.
    """

    def __init__(self) -> None:
        self.images = 0
        self._blind: Tensor | int = 0

    def add(self, blind: Tensor) -> None:
        """Add images, bool (batch,): whether the gradient of their last step was zero, and they had not been broken."""
        self.images += len(blind)
        self._blind = blind.sum() + self._blind

    @property
    def share(self) -> float:
        """The fraction of the images; 0 without any."""
        return int(self._blind) / self.images if self.images else 0.0

    @property
    def state(self) -> tuple[int, int]:
        """Images, and blind ones."""
        return self.images, int(self._blind)

    def merge_state(self, state: tuple[int, int]) -> None:
        """Add the `state` of the same attack on other images, in another process."""
        self.processes += 1
        self.images += state[0]
        self._blind = int(self._blind) + state[1]
