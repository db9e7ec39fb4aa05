from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _few_queries(few_queries: None) -> None:
    """Seconds are saved on every image that the Square attack can't break."""
