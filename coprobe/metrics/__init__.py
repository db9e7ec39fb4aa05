"""Statistics of activations at clean images and at their adversarial twins."""

from coprobe.metrics.accumulator import ChannelAccumulator, differences_squared, image_sums
from coprobe.metrics.channels import READINGS, ChannelStatistics, ChannelSums, collect
from coprobe.metrics.increments import Increments, IncrementSums, collect_increments
from coprobe.metrics.metric import Measurement, survey
from coprobe.metrics.overlap import Overlap, collect_overlap
from coprobe.metrics.sums import ImageSums

__all__ = [
    "READINGS",
    "ChannelAccumulator",
    "ChannelStatistics",
    "ChannelSums",
    "ImageSums",
    "IncrementSums",
    "Increments",
    "Measurement",
    "Overlap",
    "collect",
    "collect_increments",
    "collect_overlap",
    "differences_squared",
    "image_sums",
    "survey",
]
