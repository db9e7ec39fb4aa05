"""Statistics of activations at clean images and at their adversarial twins."""

from coprobe.statistics.accumulator import ChannelAccumulator, channel_sums, differences_squared
from coprobe.statistics.channels import ALPHA, READINGS, ChannelStatistics, collect
from coprobe.statistics.increments import Increments, collect_increments
from coprobe.statistics.overlap import collect_overlap

__all__ = [
    "ALPHA",
    "READINGS",
    "ChannelAccumulator",
    "ChannelStatistics",
    "Increments",
    "channel_sums",
    "collect",
    "collect_increments",
    "collect_overlap",
    "differences_squared",
]
