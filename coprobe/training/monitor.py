"""What is measured after every epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coprobe.attacks import AdversarialExamples, parse
from coprobe.attacks.examples import CLEAN
from coprobe.core.defaults import ATTACKS
from coprobe.core.engine import silent
from coprobe.data import Dataset
from coprobe.metrics import Accuracy, ChannelActivations, Metric, measure
from coprobe.nodes import node_table


@dataclass(frozen=True)
class Monitor:
    """Accuracy on clean, FGSM and PGD-10 images, and V_act (Eq. 5) at the nodes A…E, from one set of attacks.

    Args:
        images: what is attacked, the same images every epoch.
        epsilon: radius of the attacks, a fraction.
        also: a second radius, a fraction; 0 for none.
        device: where the model is.
        seed: of the attacks; the same random starts every epoch, so that epochs can be compared.
    """

    images: Dataset
    epsilon: float
    also: float
    device: torch.device
    seed: int

    def measure(self, model: nn.Module, progress: Callable[[int], None] | None = None) -> dict[str, float]:
        """The columns of history.csv.

        `clean`, `fgsm`, `pgd10`: accuracies, fractions. `v_act_A` … `v_act_E`: V_act between clean and PGD-10 images.
        All but `clean` again with the second radius as a suffix, such as `_16` for 16/255.
        """
        row = self._at(self.epsilon, model, progress)
        if not self.also:
            return row
        second = row if self.also == self.epsilon else self._at(self.also, model, progress)
        n = f"{self.also * 255:g}"
        return row | {f"{column}_{n}": value for column, value in second.items() if column != "clean"}

    def _at(self, epsilon: float, model: nn.Module, progress: Callable[[int], None] | None) -> dict[str, float]:
        attacks = [parse(spec, epsilon) for spec in ATTACKS]
        examples = AdversarialExamples(
            model,
            self.images,
            attacks,
            batch_size=250,
            device=self.device,
            seed=self.seed,
            progress=silent if progress is None else lambda what, images: nullcontext(progress),
        )
        nodes = list(node_table(model))
        channels = [ChannelActivations(nodes=tuple(nodes), attack=ATTACKS[-1])] if nodes else []
        metrics: list[Metric[Any]] = [Accuracy(attacks=ATTACKS), *channels]
        evaluation, *statistics = measure(examples, metrics, [model] * len(metrics))
        clean, fgsm, pgd10 = map(evaluation.accuracy, (CLEAN, *ATTACKS))
        row = {"clean": clean, "fgsm": fgsm, "pgd10": pgd10}
        return row | {f"v_act_{node}": one.v_act(node) for one in statistics for node in nodes}


def peak_memory(device: torch.device) -> float:
    """The most memory in use so far, MiB: of the GPU, or of this process on the CPU; NaN where the system hides it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
