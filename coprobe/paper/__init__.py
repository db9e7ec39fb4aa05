"""The paper: its runs, what is measured of them, the figures, tables and claims made from that, and its own numbers."""

from coprobe.paper.runs import RUNS, SCALES, PaperRun, Scale, scale_of

__all__ = ["RUNS", "SCALES", "PaperRun", "Scale", "scale_of"]
