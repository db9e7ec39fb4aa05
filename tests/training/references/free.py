from __future__ import annotations

from coprobe.data import Batch
from coprobe.training.methods import Method
from tests.training.references.common import At, Literal, Tiny, update


def free(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    """One update; tests/training/methods/test_free.py follows δ from one to the next."""
    return update(model, batch.images + method.kept["delta"][: len(batch.images)], batch)


REFERENCES = {"free": free}
