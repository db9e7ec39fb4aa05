"""What is measured on the held-out images after every epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from coprobe.attacks import AdversarialExamples, parse
from coprobe.attacks.examples import CLEAN
from coprobe.data import Dataset
from coprobe.evaluation import evaluate
from coprobe.nodes import node_table
from coprobe.statistics import collect

ATTACKS = ("fgsm", "pgd:10")


@dataclass
class Monitor:
    """Accuracy on clean, FGSM and PGD-10 images, and V_act (Eq. 5) at the nodes A…E, from one set of attacks.

    Args:
        held_out: training images that are kept from training.
        epsilon: radius of the attacks, a fraction.
        device: where the model is.
        seed: of the attacks; the same random starts every epoch, so that epochs can be compared.
    """

    held_out: Dataset
    epsilon: float
    device: torch.device
    seed: int
    columns: tuple[str, ...] = field(default=("clean", "fgsm", "pgd10"), init=False)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The columns of history.csv: accuracies as fractions, `v_act_A` … `v_act_E`."""
        attacks = [parse(spec, self.epsilon) for spec in ATTACKS]
        examples = AdversarialExamples(
            model, self.held_out, attacks, batch_size=250, device=self.device, seed=self.seed, keep=True
        )
        evaluation = evaluate(model, examples)
        row = dict(zip(self.columns, map(evaluation.accuracy, (CLEAN, *ATTACKS)), strict=True))
        nodes = list(node_table(model))
        if nodes:
            statistics = collect(model, examples, nodes, ATTACKS[-1])
            row |= {f"v_act_{node}": statistics.v_act(node) for node in nodes}
        return row
