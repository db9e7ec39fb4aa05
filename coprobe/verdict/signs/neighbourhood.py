"""What signs look at around the images of a batch; each thing is computed when a sign first asks for it, and once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialBatch, Ball, parse
from coprobe.attacks.base import PURPOSE as ATTACK
from coprobe.attacks.examples import CLEAN
from coprobe.attacks.gradient import FGSM
from coprobe.core.engine import BatchSize
from coprobe.core.randomness import ImageRandomness
from coprobe.metrics.gradient_alignment import PURPOSE as ALIGNMENT
from coprobe.metrics.points import Point, loss_of, point_at
from coprobe.nodes import Recording, record


class Neighbourhood:
    """A batch of images and what is around them, for all signs together.

    Args:
        model: images to logits, in evaluation mode.
        batch: of the pass.
        ball: in which the images may be moved.
        seed: of the random numbers; an image has the same ones in any batch.
        probing: spec under which the batch has the images of the attack behind T_act; empty if no sign asks.
        nodes: names of the nodes A…E; empty if no sign asks.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: AdversarialBatch,
        ball: Ball,
        seed: int,
        probing: str = "",
        nodes: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.batch = batch
        self.ball = ball
        self.seed = seed
        self.nodes = nodes
        self.x = batch.images[CLEAN]
        self.y = batch.labels
        #: Whether all that the model said so far was finite: bool, on the device.
        self.finite = torch.ones((), dtype=torch.bool, device=self.y.device)
        self._probing = probing
        self._right: dict[str, Tensor] = {}
        self._sizes = BatchSize(len(self.y), self.y.device, few_sizes=getattr(model, "compiled", False))

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def clean(self) -> Point:
        """At x."""
        return self._point(self.x)

    @cached_property
    def near(self) -> Point:
        """At x + η, the point of `GradientAlignment`."""
        return self._point(self.ball.random(self.x, self.randomness(ALIGNMENT)))

    @cached_property
    def start(self) -> Tensor:
        """The points x + η, the random start of FGSM."""
        return self._fgsm.initial(self.x, self.randomness(ATTACK), 0)["x_adv"]

    @cached_property
    def at_start(self) -> Point:
        """At the random start of FGSM."""
        return self._point(self.start)

    @cached_property
    def stepped(self) -> Tensor:
        """The points x + δ_F: a step of FGSM from its random start, also of images that are misclassified there."""
        return self._step(self.start, self.at_start)

    @cached_property
    def at_stepped(self) -> Point:
        """At x + δ_F."""
        return self._point(self.stepped)

    @cached_property
    def straight(self) -> Tensor:
        """The points x + δ_0: a step of FGSM from x itself."""
        return self._step(self.x, self.clean)

    @property
    def probed(self) -> Tensor:
        """The points x + δ_P: the images of the attack behind T_act."""
        return self.batch.images[self._probing]

    @cached_property
    def activations(self) -> tuple[Recording, Recording]:
        """At the nodes, at x and at x + δ_P."""
        recorded = []
        for images in (self.x, self.probed):
            with torch.no_grad(), record(self.model, self.nodes) as seen:
                self._check(self.model(images))
            recorded.append(seen)
        return recorded[0], recorded[1]

    def right(self, spec: str) -> Tensor:
        """Which images of an attack of the pass, or clean ones, are classified correctly: bool (batch,)."""
        if spec not in self._right:
            self._right[spec] = self.predictions(self.batch.images[spec]) == self.y
        return self._right[spec]

    def right_under(self, spec: str, epsilon: float) -> Tensor:
        """The same under an attack at another radius, which is made here."""
        attack = parse(spec, epsilon, self.ball.norm)
        x_adv = attack(self.model, self.x, self.y, seed=self.seed, indices=self.batch.indices)
        return self.predictions(x_adv) == self.y

    def logits(self, points: Tensor) -> Tensor:
        """The logits at some points, which may be fewer than the images; without a gradient."""
        count = len(points)
        padded = self._sizes.padded(count) if count else 0
        if padded > count:  # so that an image has the same logits in whatever company
            points = points[torch.arange(padded, device=points.device) % count]
        with torch.no_grad():
            return self._check(self.model(points))[:count]

    def predictions(self, points: Tensor) -> Tensor:
        """The classes that the model sees at some points."""
        return self.logits(points).argmax(1)

    def loss(self, points: Tensor) -> Tensor:
        """The cross-entropy at one point for each image, float64 (batch,)."""
        return loss_of(self.logits(points), self.y)

    def randomness(self, purpose: str) -> ImageRandomness:
        """Random numbers of the images for a purpose."""
        return ImageRandomness(self.seed, purpose, self.batch.indices)

    @cached_property
    def _fgsm(self) -> FGSM:
        return FGSM(epsilon=self.ball.epsilon, norm=self.ball.norm)

    def _step(self, start: Tensor, at: Point) -> Tensor:
        gradient = at.gradient.view_as(start).to(start.dtype)
        return self._fgsm.update({"x_adv": start}, gradient, self.x)["x_adv"]

    def _point(self, x: Tensor) -> Point:
        point = point_at(self.model, x, self.y)
        self._check(point.logits)
        self._check(point.gradient)
        return point

    def _check(self, values: Tensor) -> Tensor:
        self.finite = self.finite & values.isfinite().all()
        return values
