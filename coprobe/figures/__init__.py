"""Figures: a data frame in, a matplotlib figure out; nothing here computes a statistic or reads a run."""
