"""How much each channel of a node speaks for the predicted class on adversarial images, by captum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks.examples import AdversarialBatch
from coprobe.core.engine import frozen
from coprobe.errors import InputError, unknown
from coprobe.metrics.metric import METRICS, AttackMetric
from coprobe.metrics.sums import ImageSums
from coprobe.nodes import tapped

#: captum's layer attributions by the name that people write, with their number of steps along a path, if any.
METHODS = {"gradient-x-activation": ("LayerGradientXActivation", None), "conductance": ("LayerConductance", 8)}


def gradient_reaches(model: nn.Module, node: str, images: Tensor) -> bool:
    """Whether the logits have a gradient at a node, as attributions need.

    They have none inside a `torch.autograd.Function`, whose backward pass is its own, and before a detach().

    Args:
        model: left as it is.
        node: name of a whole node.
        images: float (batch, channels, height, width) in [0, 1]; one is enough.
    """
    passed: list[Tensor] = []
    with frozen(model), torch.enable_grad(), tapped(model, node) as tap:
        tap.register_forward_hook(lambda module, inputs, output: passed.append(output))
        logits = model(images.detach().clone().requires_grad_())
        if not (passed[-1].requires_grad and logits.requires_grad):
            return False
        # inside the block, since layers that checkpoint their activations run again for it
        return torch.autograd.grad(logits.sum(), passed[-1], allow_unused=True)[0] is not None


@METRICS.register(
    "attribution",
    summary="absolute attribution of each channel for the class predicted on adversarial images",
    source="Shrikumar et al. 2016 (gradient × activation), Dhamdhere et al. 2018 (conductance); captum",
)
@dataclass(kw_only=True)
class Attribution(AttackMetric[pd.DataFrame]):
    """Sums over images of each channel's absolute attribution, summed over positions.

    Args:
        node: name of a whole node, see `coprobe.nodes`.
        method: `gradient-x-activation`, or `conductance` along the path from a black image in 8 steps.

    Raises:
        InputError: an unknown method; in `compute`, no images.
    """

    node: str = "A"
    method: str = "gradient-x-activation"
    name: ClassVar[str] = "attribution"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("attribution", self.method, METHODS)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The one."""
        return (self.node,)

    def prepare(self, model: nn.Module) -> None:
        """Begin with sums of nothing."""
        self._model = model
        self._sums = ImageSums()

    def update(self, batch: AdversarialBatch) -> None:
        """Attribute the class predicted on each adversarial image."""
        from captum import attr

        name, n_steps = METHODS[self.method]
        # A copy, since captum switches the gradient of its input on.
        x = batch.images[self.attack].detach().clone().requires_grad_()
        # All steps at once would take n_steps times the memory; captum needs room for two at least.
        settings = {"n_steps": n_steps, "internal_batch_size": 2 * len(x)} if n_steps else {}
        with frozen(self._model), tapped(self._model, self.node) as tap:
            with torch.no_grad():
                predicted = self._model(x).argmax(1)
            attributed = getattr(attr, name)(self._model, tap).attribute(x, target=predicted, **settings)
        per_image = attributed.detach().flatten(2).sum(2) if attributed.dim() > 2 else attributed.detach()
        self._sums.add(batch.start, per_image.abs().double())

    @property
    def state(self) -> Any:
        """Sums over the images."""
        return self._sums.state

    def merge_state(self, state: Any) -> None:
        """Add up."""
        self._sums.merge_state(state)

    def compute(self) -> pd.DataFrame:
        """Columns node, channel, attribution."""
        total = self._sums.total()
        if total is None:
            raise InputError("no images to attribute; raise --limit")
        return pd.DataFrame({"node": self.node, "channel": range(len(total)), "attribution": total.numpy()})
