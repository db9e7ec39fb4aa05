"""Statistics of activations at clean images and at their adversarial twins."""

from coprobe.statistics.accumulator import ChannelAccumulator, channel_sums
from coprobe.statistics.channels import ALPHA, READINGS, ChannelStatistics, collect

__all__ = ["ALPHA", "READINGS", "ChannelAccumulator", "ChannelStatistics", "channel_sums", "collect"]
