"""Sign 13: layers whose weights matter for robustness: noise on them, or their weights out of another checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from coprobe.attacks.examples import CLEAN
from coprobe.checkpoint import Checkpoint
from coprobe.core.defaults import ATTACKS
from coprobe.core.randomness import generator_for
from coprobe.errors import InputError
from coprobe.metrics import Accuracy
from coprobe.metrics.pipeline import results_of
from coprobe.metrics.setup import Setup
from coprobe.verdict.signs.base import SIGNS, ModelSign, Quantity
from coprobe.verdict.signs.layers import weights_of, with_weight

#: The model as it is, among its changed copies.
UNCHANGED = "none"
_QUANTITIES = (
    Quantity("clean", "accuracy", interval="wilson"),
    Quantity("pgd", "accuracy", "one layer hardly matters", "some layers restore it", "wilson"),
)


class _Changed(ModelSign):
    """Clean and PGD-10 accuracy of copies of the model that differ in the weights of one layer."""

    quantities: ClassVar[tuple[Quantity, ...]] = _QUANTITIES

    def rows(self, setup: Setup, reference: Checkpoint | None) -> pd.DataFrame:
        """Attack every copy, and the model itself."""
        rows = self._accuracies(setup, UNCHANGED)
        for path, weight in self.weights(setup, reference):
            changed = with_weight(setup.checkpoint, path, weight)
            rows += self._accuracies(replace(setup, checkpoint=changed, cache=None), path)
        return pd.DataFrame(rows)

    def weights(self, setup: Setup, reference: Checkpoint | None) -> Iterator[tuple[str, Tensor]]:
        """By layer, what its weights are changed to."""
        raise NotImplementedError

    def _accuracies(self, setup: Setup, at: str) -> list[dict[str, object]]:
        attack = ATTACKS[1]
        (evaluation,) = results_of(setup, [Accuracy(attacks=(attack,))])
        names = {CLEAN: "clean", attack: "pgd"}
        return [
            {"quantity": names[row["attack"]], "at": at, "value": row["accuracy"], "low": row["low"],
             "high": row["high"], "n": row["n"]}
            for row in evaluation.frame.to_dict("records")
        ]  # fmt: skip


@SIGNS.register(
    "layer-noise",
    summary="PGD accuracy after noise on the weights of one layer",
    source="LAP 2024 (code)",
    number=13,
    cost="clean and PGD-10 accuracy anew for each layer",
)
@dataclass(frozen=True)
class LayerNoise(_Changed):
    """The noise is normal, of a length that is a part of that of the weights.

    Args:
        rho: this part.
    """

    rho: float = 0.3
    name: ClassVar[str] = "layer-noise"
    formula: ClassVar[str] = "accuracy with W ← W + ρ ‖W‖ n / ‖n‖ in one layer, n normal, ρ = 0.3"

    def weights(self, setup: Setup, reference: Checkpoint | None) -> Iterator[tuple[str, Tensor]]:
        """A draw for each layer, from the seed and the number of the layer."""
        for number, (path, weight) in enumerate(weights_of(setup.checkpoint).items()):
            noise = torch.randn(weight.shape, generator=generator_for(setup.seed, self.name, number)).to(weight)
            yield path, weight + self.rho * weight.norm() * noise / noise.norm()


@SIGNS.register(
    "layer-transplant",
    summary="PGD accuracy with the weights of one layer out of another checkpoint (a healthy one, or the initial one)",
    source="arXiv 2604.24350 (abstract)",
    number=13,
    cost="clean and PGD-10 accuracy anew for each layer",
)
@dataclass(frozen=True)
class LayerTransplant(_Changed):
    """Only weights of convolutions and linear layers are moved; the statistics of batch norm stay."""

    name: ClassVar[str] = "layer-transplant"
    formula: ClassVar[str] = "accuracy with W ← W of the second checkpoint in one layer"
    needs_reference: ClassVar[bool] = True

    def check(self, setup: Setup, reference: Checkpoint | None) -> None:
        """Compare the shapes."""
        assert reference is not None
        own, others = (
            {path: weight.shape for path, weight in weights_of(one).items()} for one in (setup.checkpoint, reference)
        )
        if own != others:
            raise InputError(
                f"{reference.path or 'the second checkpoint'}: has other layers than the first; "
                "choose one of the same architecture and width"
            )

    def weights(self, setup: Setup, reference: Checkpoint | None) -> Iterator[tuple[str, Tensor]]:
        """Those of the reference."""
        assert reference is not None
        others = weights_of(reference)
        for path, weight in weights_of(setup.checkpoint).items():
            yield path, others[path].to(weight)
