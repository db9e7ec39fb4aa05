from __future__ import annotations

from coprobe.data import Batch
from coprobe.training.methods import Method
from tests.training.references.common import EPSILON, At, Literal, Tiny, draw_uniform, draws, update


def noise(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    return update(model, batch.images + EPSILON * draw_uniform(draws(at), batch), batch)


REFERENCES = {"noise": noise}
