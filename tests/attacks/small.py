"""Small models for the tests of attacks, and what an attack must not change in a model and in the process."""

from __future__ import annotations

import random
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")


class Fuse(nn.Module):
    """Passes its input on and raises at the call number `blows`."""

    def __init__(self, blows: int = 0) -> None:
        super().__init__()
        self.blows, self.calls = blows, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.blows:
            raise ArithmeticError("blown")
        return x


def linear(shape: tuple[int, int, int], classes: int, seed: int = 0) -> nn.Sequential:
    """Flattened pixels through one linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))


def convolutional(shape: tuple[int, int, int], classes: int, seed: int = 0, blows: int = 0) -> nn.Sequential:
    """Conv-BN-ReLU in training mode, its BN in evaluation mode, one frozen parameter and one `.grad`: all must stay."""
    torch.manual_seed(seed)
    channels, height, width = shape
    features = nn.Sequential(
        nn.Conv2d(channels, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), Fuse(blows)
    )
    model = nn.Sequential(features, nn.Flatten(), nn.Linear(5 * height * width, classes)).train()
    features[1].eval()
    features[0].weight.requires_grad_(False)
    model[2].weight.grad = torch.randn_like(model[2].weight)
    model[2].register_forward_hook(lambda module, inputs, output: None)
    return model


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """What must be the same before and after an attack, as comparable values."""
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002 - the global state is what is looked at
    return {
        "weights and counters": {k: v.numpy().tobytes() for k, v in model.state_dict().items()},
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "grad": [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in HOOKS],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (numpy_state[1].tobytes(), numpy_state[2:]),
        "random": random.getstate(),
        "trace": sys.gettrace(),
        "grad mode": torch.is_grad_enabled(),
    }


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per image."""
    with torch.no_grad():
        return cross_entropy(model(x), y, reduction="none")


@lru_cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that classifies noisy prototypes of four classes, in evaluation mode, and 64 other images."""
    torch.manual_seed(1)
    prototypes = torch.rand(4, 1, 6, 5) * 0.3 + 0.35
    y = torch.arange(256) % 4
    x = (prototypes[y] + 0.15 * torch.randn(256, 1, 6, 5)).clamp(0, 1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(240, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        cross_entropy(model(x[64:]), y[64:]).backward()
        optimiser.step()
    return model.eval(), x[:64], y[:64]
