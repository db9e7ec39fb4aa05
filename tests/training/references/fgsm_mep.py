from __future__ import annotations

from coprobe.data import Batch
from coprobe.training.methods import Method
from tests.training.references.common import EPSILON, At, Literal, Tiny, single_step


def fgsm_mep(model: Tiny, batch: Batch, method: Method, at: At) -> Literal:
    delta0 = method.memory("prior").gather()[batch.indices].clone()
    return single_step(model, batch, delta0, EPSILON, 0.6)


REFERENCES = {"fgsm-mep": fgsm_mep}
