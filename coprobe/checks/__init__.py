"""The self-check: what would make a result mean something else than it says, looked for on one batch beforehand.

Each check is a small function in `CHECKS`, from a `Subject` to a finding or None. Those marked `quick` run at the start
of everything that is measured, all of them in `coprobe check`.
"""

from coprobe.checks.base import CHECKS, Finding, Findings, check
from coprobe.checks.subject import Subject
from coprobe.core.registry import discover

discover(__name__)

__all__ = ["CHECKS", "Finding", "Findings", "Subject", "check"]
