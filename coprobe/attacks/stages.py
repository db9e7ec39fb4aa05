"""What the members of AutoAttack did, one after the other: how many images each saw and broke, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from coprobe.attacks.tally import Tally


@dataclass
class Stage:
    """What one member did.

    Attributes:
        images: how many it was given: those that were classified correctly until then.
        broken: how many of these it made the model misclassify.
        seconds: how long it took.
    """

    images: int = 0
    broken: int = 0
    seconds: float = 0.0


class Stages(Tally):
    """What the members of an attack did since it was made.

    Attributes:
        images: how many the attack was given, those that are misclassified anyway among them.
        by_member: in the order in which they run.
    """

    def __init__(self) -> None:
        self.images = 0
        self.by_member: dict[str, Stage] = {}

    def add(self, images: int, by_member: Mapping[str, Stage]) -> None:
        """Add what was done to a batch of `images`."""
        self.images += images
        for member, stage in by_member.items():
            total = self.by_member.setdefault(member, Stage())
            total.images += stage.images
            total.broken += stage.broken
            total.seconds += stage.seconds

    @property
    def state(self) -> Any:
        """All of it, in plain values."""
        return self.images, {member: astuple(stage) for member, stage in self.by_member.items()}

    def merge_state(self, state: Any) -> None:
        """Add the `state` of the same attack on other images in another process, whose seconds passed meanwhile."""
        self.processes += 1
        images, by_member = state
        alone = {member: stage.seconds for member, stage in self.by_member.items()}
        self.add(images, {member: Stage(*values) for member, values in by_member.items()})
        for member, (*_, seconds) in by_member.items():
            self.by_member[member].seconds = max(alone.get(member, 0.0), seconds)

    def rows(self) -> list[dict[str, Any]]:
        """A row of plain values per member.

        Keys: member; n, all images that the attack was given; images, broken and seconds as in `Stage`; accuracy, the
        fraction of n that is classified correctly after it; gained, by how much that is less than before it; share, its
        fraction of the seconds of all members.
        """
        seconds = sum(stage.seconds for stage in self.by_member.values())
        return [
            {
                "member": member,
                "n": self.images,
                "images": stage.images,
                "broken": stage.broken,
                "accuracy": (stage.images - stage.broken) / self.images,
                "gained": stage.broken / self.images,
                "seconds": stage.seconds,
                "share": stage.seconds / seconds if seconds else 0.0,
            }
            for member, stage in self.by_member.items()
        ]
