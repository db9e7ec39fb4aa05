"""Statistics of activations at clean images and at their adversarial twins."""

from coprobe.statistics.accumulator import ChannelAccumulator, differences_squared, image_sums
from coprobe.statistics.channels import ALPHA, READINGS, ChannelStatistics, ChannelSums, collect
from coprobe.statistics.increments import Increments, IncrementSums, collect_increments
from coprobe.statistics.overlap import Overlap, collect_overlap
from coprobe.statistics.sums import ImageSums
from coprobe.statistics.survey import Measurement, survey

__all__ = [
    "ALPHA",
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
