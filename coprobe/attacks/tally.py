"""What an attack counts while it works; the counts of several processes are added up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Tally(ABC):
    """Counts that can be merged.

    Attributes:
        processes: how many have given their part.
    """

    processes: int = 1

    @property
    @abstractmethod
    def state(self) -> Any:
        """All of it, in plain values."""

    @abstractmethod
    def merge_state(self, state: Any) -> None:
        """Add the `state` of the same attack on other images, in another process; one more of `processes`."""
