from __future__ import annotations

from coprobe.data import Batch
from coprobe.training.methods import Method
from tests.training.references.common import EPSILON, Literal, Tiny, draw_uniform, same_draws, update


def noise(model: Tiny, batch: Batch, method: Method) -> Literal:
    return update(model, batch.images + EPSILON * draw_uniform(same_draws(method), batch), batch)


REFERENCES = {"noise": noise}
