"""The paper: its runs, what is measured of them, the figures, tables and claims made from that, and its own numbers."""

from coprobe.paper.needs import Need
from coprobe.paper.results import MissingResultError, Results
from coprobe.paper.runs import RUNS, SCALES, PaperRun, Scale, scale_of

__all__ = ["RUNS", "SCALES", "MissingResultError", "Need", "PaperRun", "Results", "Scale", "scale_of"]
