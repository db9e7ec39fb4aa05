"""Signs of a model: one pass over the images for all that look at images, and the table of what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from coprobe.attacks import AdversarialBatch, AnyAttack, Ball, as_attack
from coprobe.attacks.examples import CLEAN
from coprobe.checkpoint import Model, as_checkpoint
from coprobe.core.defaults import ATTACKS, PROBING_ATTACK
from coprobe.core.engine import FULL, frozen
from coprobe.core.provenance import provenance
from coprobe.errors import InputError, RunError
from coprobe.metrics.metric import Metric
from coprobe.metrics.pipeline import results_of
from coprobe.metrics.setup import Setup
from coprobe.nodes import CHECKED, check_neutral, node_table
from coprobe.verdict.signs.accuracy_over_epsilon import AccuracyOverEpsilon
from coprobe.verdict.signs.base import ImageSign, Key, ModelSign, Values, settings_of
from coprobe.verdict.signs.neighbourhood import Neighbourhood
from coprobe.verdict.signs.table import SignTable, chosen, table_of


@dataclass(kw_only=True)
class ImageSigns(Metric[pd.DataFrame]):
    """The numbers of several signs for every image, from one pass.

    Args:
        signs: whose numbers.
        probing: the attack behind T_act, for those that look at its images; in `at` it becomes its spec.
        places: names of the nodes A…E, for those that look there.

    Raises:
        InputError: an unknown attack or node; in `compute`, no images.
        RunError: in `compute`, logits or gradients that are not finite.
    """

    signs: tuple[ImageSign, ...]
    probing: Any = PROBING_ATTACK
    places: tuple[str, ...] = ()
    name: ClassVar[str] = "signs"

    @property
    def nodes(self) -> tuple[str, ...]:
        """Where activations are recorded."""
        return self.places if any(sign.at_nodes for sign in self.signs) else ()

    @property
    def attacks(self) -> tuple[Any, ...]:
        """Those whose images some sign looks at."""
        measured = ATTACKS if any(sign.sees_attacks for sign in self.signs) else ()
        return (*measured, *([self.probing] if any(sign.sees_probing for sign in self.signs) else []))

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the signs, by name."""
        return {**super().settings, "signs": {sign.name: settings_of(sign) for sign in self.signs}}

    def at(self, ball: Ball, seed: int) -> ImageSigns:
        """The same, with the spec as batches have it; raises `InputError` for an unknown attack or option."""
        spec = as_attack(self.probing, ball).spec
        return replace(self, epsilon=ball.epsilon, norm=ball.norm, seed=seed, probing=spec)

    def prepare(self, model: nn.Module) -> None:
        """Begin without images."""
        self._model = model
        self._values: dict[int, dict[tuple[str, Key], Tensor]] = {}
        self._largest = 0
        self._finite: Tensor | bool = True

    def update(self, batch: AdversarialBatch) -> None:
        """Show the neighbourhood of the batch to every sign; their numbers grow with the images."""
        if not self._values and self.nodes:
            check_neutral(self._model, batch.images[CLEAN][:CHECKED], self.nodes)
        count = len(batch.labels)
        with frozen(self._model):
            ball = Ball(self.epsilon, self.norm)
            full = filled_up(batch, min(FULL, self._largest))
            here = Neighbourhood(self._model, full, ball, self.seed, self.probing, self.nodes)
            found = {
                (sign.name, key): numbers[:count].double().cpu()
                for sign in self.signs
                for key, numbers in sign.values(here).items()
            }
        self._values[batch.start] = found
        self._finite = here.finite & self._finite
        self._largest = max(self._largest, count)

    @property
    def state(self) -> Any:
        """The numbers by the index of the first image, and whether all that the model said was finite."""
        return self._values, bool(self._finite)

    def merge_state(self, state: Any) -> None:
        """Take the other images over."""
        values, finite = state
        self._values |= values
        self._finite = finite and bool(self._finite)

    def compute(self) -> pd.DataFrame:
        """A row per image, sign and quantity: image (its index), sign, quantity, at, value (NaN if not counted)."""
        if not self._values:
            raise InputError("no images to look for signs on; raise --limit")
        if not self._finite:
            raise RunError(
                "the model's logits or gradients are not finite (NaN or infinite); check its weights and --mean/--std"
            )
        parts = [part for _, part in sorted(self._values.items())]
        images = np.concatenate([np.arange(len(_first(part))) + start for start, part in sorted(self._values.items())])
        tables = []
        for sign in self.signs:
            keys = [key for name, key in parts[0] if name == sign.name]
            values: Values = {key: torch.cat([part[sign.name, key] for part in parts]) for key in keys}
            tables += [
                pd.DataFrame({
                    "image": images, "sign": sign.name, "quantity": key.quantity, "at": key.at, "value": numbers.numpy()
                })
                for key, numbers in sign.of_all(values).items()
            ]  # fmt: skip
        return pd.concat(tables, ignore_index=True)


def filled_up(batch: AdversarialBatch, count: int) -> AdversarialBatch:
    """A batch of at least so many images, with copies of its own, so that each is computed as in any other batch."""
    missing = count - len(batch.labels)
    if missing <= 0:
        return batch
    rows = torch.arange(count, device=batch.labels.device) % len(batch.labels)
    images = {spec: images[rows] for spec, images in batch.images.items()}
    return AdversarialBatch(batch.start, batch.labels[rows], images)


def _first(part: dict[tuple[str, Key], Tensor]) -> Tensor:
    return next(iter(part.values()))


def signs_of(
    setup: Setup,
    names: Sequence[str] = (),
    *,
    nodes: Sequence[str] = (),
    attack: AnyAttack = PROBING_ATTACK,
    budgets: Sequence[float] = (),
    reference: Model | None = None,
) -> SignTable:
    """The signs of a model.

    Args:
        setup: model, images and settings.
        names: of signs; none means all that can be measured.
        nodes: where activations are looked at; none means A…E.
        attack: the one behind T_act.
        budgets: of `accuracy-over-eps`, radii as of `Ball`; none means those of the sign.
        reference: a second checkpoint, for the signs that compare with one, as of `as_checkpoint`.

    Raises:
        InputError: an unknown sign, node, attack or budget; a network without nodes, for signs that look there; a
            sign that needs a second checkpoint without one, or with one of other layers.
        RunError: the model's logits or gradients are not finite.
    """
    places = tuple(nodes) or tuple(node_table(setup.stored_model))
    signs = [
        AccuracyOverEpsilon(tuple(budgets)) if sign is AccuracyOverEpsilon else sign()
        for sign in chosen(names, has_reference=reference is not None, has_nodes=bool(places))
    ]
    other = None if reference is None else as_checkpoint(reference, image_shapes=[setup.dataset.image_shape])
    looking = tuple(sign for sign in signs if isinstance(sign, ImageSign))
    others = [sign for sign in signs if isinstance(sign, ModelSign)]
    for sign in others:
        sign.check(setup, other)
    images = pd.DataFrame(columns=["image", "sign", "quantity", "at", "value"])
    images.attrs = provenance(**setup.facts)
    if looking:
        (images,) = results_of(setup, [ImageSigns(signs=looking, probing=attack, places=places)], spool=setup.spool)
    rows = [sign.rows(setup, other).assign(sign=sign.name) for sign in others]
    return table_of(signs, images, pd.concat([pd.DataFrame({"sign": []}), *rows]), setup.seed)
