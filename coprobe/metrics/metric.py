"""What a metric is, and one pass over adversarial batches for all that are asked: nothing is attacked twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd
from torch import nn

from coprobe.attacks import Ball, as_attack
from coprobe.attacks.examples import AdversarialBatch, AdversarialExamples
from coprobe.core.defaults import PROBING_ATTACK
from coprobe.core.engine import in_batches
from coprobe.core.processes import ALONE, Processes
from coprobe.core.registry import Registry

R = TypeVar("R")

#: Every metric by the name that people write.
METRICS: Registry[type[Metric[Any]]] = Registry("metric")


@dataclass(kw_only=True)
class Metric(ABC, Generic[R]):
    """Something that is measured batch by batch, on the device, and known when all batches have been seen.

    Its fields are what it depends on. What it gathers begins with `prepare` and is merged over processes.

    Args:
        epsilon, norm: of the attacks, see `attacks.Ball`; for those metrics that look into the ball by themselves.
        seed: of the metric's own random numbers.
    """

    epsilon: float = 0.0
    norm: str = "linf"
    seed: int = 0

    #: In a word, as it is registered and as files of its results begin.
    name: ClassVar[str]
    #: Of what it computes: raise it when the numbers change, so that results which are kept are measured anew.
    version: ClassVar[int] = 1
    #: Whether it looks at every iterate of its attacks, see `AdversarialBatch.trajectories`.
    follows: ClassVar[bool] = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """Where it records or masks."""
        return ()

    @property
    def attacks(self) -> tuple[Any, ...]:
        """The attacks whose images it needs, after `at` their specs; clean images are always there."""
        return ()

    @property
    def settings(self) -> dict[str, Any]:
        """All fields but `epsilon`, `norm` and `seed`, as plain values."""
        shared = {field.name for field in fields(Metric)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in shared}

    def at(self, ball: Ball, seed: int) -> Metric[R]:
        """The same metric without what it has gathered, for attacks in this ball and with this seed."""
        return replace(self, epsilon=ball.epsilon, norm=ball.norm, seed=seed)

    def parts(self) -> list[Metric[R]]:
        """What can be measured one after the other: the tables of all, one below the other, are that of the whole."""
        return [self]

    @abstractmethod
    def prepare(self, model: nn.Module) -> None:
        """Begin anew with this model, images in [0, 1] to logits; it is left as it was."""

    @abstractmethod
    def update(self, batch: AdversarialBatch) -> None:
        """See a batch. Where memory runs out, nothing of it may have been added: it comes again in halves."""

    @property
    @abstractmethod
    def state(self) -> Any:
        """What has been measured so far, in plain values and tensors on the host."""

    @abstractmethod
    def merge_state(self, state: Any) -> None:
        """Add the `state` of the same metric on other images."""

    @abstractmethod
    def compute(self) -> R:
        """What was measured on all images: a table, or an object around one that is called `frame`.

        Raises:
            InputError: there were none, or too few.
            RunError: the model's outputs or activations were not finite.
        """

    @staticmethod
    def restored(frame: pd.DataFrame) -> Any:
        """What `compute` returned, from its table."""
        return frame

    def measure(self, model: nn.Module, batches: Iterable[AdversarialBatch]) -> R:
        """This metric of a model alone, see `measure`."""
        result: R = measure(batches, [self], [model])[0]
        return result


@dataclass(kw_only=True)
class AttackMetric(Metric[R]):
    """A metric of one attack.

    Args:
        attack: anything that `attacks.as_attack` takes; in `at` it becomes the spec under which the batches hold its
            images.
    """

    attack: Any = PROBING_ATTACK

    @property
    def attacks(self) -> tuple[Any, ...]:
        """The one."""
        return (self.attack,)

    def at(self, ball: Ball, seed: int) -> AttackMetric[R]:
        """The same, with the spec as batches have it; raises `InputError` for an unknown attack or option."""
        spec = as_attack(self.attack, ball).spec
        return replace(self, epsilon=ball.epsilon, norm=ball.norm, seed=seed, attack=spec)


def table_of(result: Any) -> pd.DataFrame:
    """The table of what a metric computed."""
    frame: pd.DataFrame = result if isinstance(result, pd.DataFrame) else result.frame
    return frame


def measure(
    batches: Iterable[AdversarialBatch],
    metrics: Sequence[Metric[Any]],
    models: Sequence[nn.Module],
    processes: Processes = ALONE,
) -> list[Any]:
    """Show every batch to every metric, and return what they compute.

    Args:
        batches: an `AdversarialExamples`, or any iterable of its batches; in each process another part of them.
        metrics: each once.
        models: of each metric the one that is measured; other models than that which was attacked, for transfer.
        processes: those that share the images; each gets the results of all.
    """
    size = batches.size if isinstance(batches, AdversarialExamples) else None
    for metric, model in zip(metrics, models, strict=True):
        metric.prepare(model)
    for batch in batches:
        for metric in metrics:
            if size is None:
                metric.update(batch)
                continue
            with batches.drawing(batch.start) if isinstance(batches, AdversarialExamples) else nullcontext():
                for _ in in_batches(len(batch.labels), lambda a, b, m=metric: m.update(batch.part(a, b)), size):  # type: ignore[misc]  # noqa: B023
                    pass
    if processes.world_size > 1:
        gathered = processes.gather([metric.state for metric in metrics])
        for rank, states in enumerate(gathered):
            if rank != processes.rank:
                for metric, state in zip(metrics, states, strict=True):
                    metric.merge_state(state)
    return [metric.compute() for metric in metrics]
