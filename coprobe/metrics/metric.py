"""One pass over adversarial batches for everything that is to be measured on them: nothing is attacked twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from coprobe.attacks.examples import AdversarialBatch, AdversarialExamples, Follower
from coprobe.core.engine import BatchSize, in_batches
from coprobe.core.processes import ALONE, Processes

R = TypeVar("R")


class Measurement(ABC, Generic[R]):
    """Something that is measured batch by batch, on the device, and known when all batches have been seen."""

    #: Specs of attacks of which it wants to see every step, see `follow`.
    follows: Sequence[str] = ()

    @abstractmethod
    def update(self, batch: AdversarialBatch) -> None:
        """See a batch. Where memory runs out, nothing of it may have been added: it comes again in halves."""

    def follow(self, spec: str) -> Follower:
        """A generator that is shown the iterates of an attack; for each of `follows`."""
        raise KeyError(spec)

    @property
    @abstractmethod
    def state(self) -> Any:
        """What has been measured so far, in plain values and tensors on the host."""

    @abstractmethod
    def absorb(self, state: Any) -> None:
        """Add the `state` of the same measurement on other images."""

    @abstractmethod
    def result(self) -> R:
        """What was measured on all images.

        Raises:
            InputError: there were none, or too few.
            RunError: the model's outputs or activations were not finite.
        """


def survey(
    batches: Iterable[AdversarialBatch], measurements: Sequence[Measurement[Any]], processes: Processes = ALONE
) -> list[Any]:
    """Show every batch to every measurement, and return their results.

    Args:
        batches: an `AdversarialExamples`, or any iterable of its batches; in each process another part of them.
        measurements: fresh ones.
        processes: those that share the images; each gets the results of all.
    """
    size = batches.size if isinstance(batches, AdversarialExamples) else None
    with _following(batches, measurements):
        for batch in batches:
            for measurement in measurements:
                _show(measurement, batch, size)
    if processes.world_size > 1:
        for measurement, states in zip(measurements, _exchanged(measurements, processes), strict=True):
            for state in states:
                measurement.absorb(state)
    return [measurement.result() for measurement in measurements]


@contextmanager
def _following(batches: Iterable[AdversarialBatch], measurements: Sequence[Measurement[Any]]) -> Iterator[None]:
    """Let the measurements see the steps that they want to see, during this pass alone."""
    if not isinstance(batches, AdversarialExamples):
        yield
        return
    before = {spec: list(others) for spec, others in batches.followers.items()}
    for measurement in measurements:
        for spec in measurement.follows:
            batches.followers.setdefault(spec, []).append(measurement.follow(spec))
    try:
        yield
    finally:
        batches.followers = before


def _show(measurement: Measurement[Any], batch: AdversarialBatch, size: BatchSize | None) -> None:
    if size is None:
        measurement.update(batch)
        return
    for _ in in_batches(len(batch.labels), lambda start, stop: measurement.update(batch.part(start, stop)), size):
        pass


def _exchanged(measurements: Sequence[Measurement[Any]], processes: Processes) -> list[list[Any]]:
    """For every measurement, the states of the other processes by rank."""
    gathered = processes.gather([measurement.state for measurement in measurements])
    others = [states for rank, states in enumerate(gathered) if rank != processes.rank]
    return [list(states) for states in zip(*others, strict=True)]
