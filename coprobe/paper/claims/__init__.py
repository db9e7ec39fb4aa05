"""What the paper claims, each with its verdict: computed from results, at whatever scale there are some."""

from coprobe.paper.claims.record import VERDICTS, Claim, Finding
from coprobe.paper.claims.table import CLAIMS, CONTROLS, chosen, judged, markdown, needs

__all__ = ["CLAIMS", "CONTROLS", "VERDICTS", "Claim", "Finding", "chosen", "judged", "markdown", "needs"]
