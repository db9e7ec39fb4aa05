from __future__ import annotations

from typing import Any

import pyautoattack.autoattack
import pytest


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Square attack with 200 of its 5,000 queries, which take seconds on an image that it can't break."""
    perturb = pyautoattack.autoattack.SquareAttack.perturb

    def briefly(self: Any, *arguments: Any) -> Any:
        assert self.n_queries in (5000, 200)  # again for its second batch
        self.n_queries = 200
        return perturb(self, *arguments)

    monkeypatch.setattr(pyautoattack.autoattack.SquareAttack, "perturb", briefly)
