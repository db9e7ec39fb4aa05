"""What is measured on clean and adversarial batches: update, merge_state, compute."""

from coprobe.core.registry import discover
from coprobe.metrics.accuracy import NO_NOISE, Accuracy, Evaluation, Noise
from coprobe.metrics.channels import NO_STATISTICS, READINGS, ChannelActivations, ChannelStatistics
from coprobe.metrics.increments import ActivationIncrements, Increments
from coprobe.metrics.metric import METRICS, Metric, measure
from coprobe.metrics.overlap import ChannelOverlap

discover(__name__)

__all__ = [
    "METRICS",
    "NO_NOISE",
    "NO_STATISTICS",
    "READINGS",
    "Accuracy",
    "ActivationIncrements",
    "ChannelActivations",
    "ChannelOverlap",
    "ChannelStatistics",
    "Evaluation",
    "Increments",
    "Metric",
    "Noise",
    "measure",
]
