"""What a claim is, and how a verdict follows from numbers and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coprobe.errors import CoprobeError
from coprobe.paper.needs import Need
from coprobe.paper.results import MissingResultError, Results

#: The verdicts, in the order in which they are shown.
CONFIRMED, REFUTED, UNDECIDED, NOT_MEASURED = VERDICTS = ("confirmed", "refuted", "undecided", "not yet measured")
#: How many conditions a value and a reason name before they only count the rest.
_VALUES, _REASONS = 6, 4


class UnmetError(CoprobeError):
    """What a claim speaks about did not come about in these runs."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; of an exact number all three are the same."""

    value: float
    low: float
    high: float

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference with Newcombe's interval of independent samples.

        Our samples are the same images, which mostly agree, so the interval is wider than it need be and a verdict
        that it allows is safe.
        """
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - below, value + above)

    def __mul__(self, factor: float) -> Estimate:
        """The estimate times a factor that is not negative."""
        return Estimate(factor * self.value, factor * self.low, factor * self.high)

    def __abs__(self) -> Estimate:
        """The magnitude; its interval starts at 0 where the sign is not known."""
        low, high = sorted((abs(self.low), abs(self.high)))
        return Estimate(abs(self.value), 0.0 if self.low < 0 < self.high else low, high)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates from the same images, whose errors therefore don't average out."""
    count = len(estimates)
    return Estimate(
        sum(one.value for one in estimates) / count,
        sum(one.low for one in estimates) / count,
        sum(one.high for one in estimates) / count,
    )


@dataclass(frozen=True)
class Check:
    """One condition of a claim.

    Attributes:
        passed: whether it holds; None where the interval holds both answers.
        found: what was measured, in words and numbers.
        rule: what is asked of it.
    """

    passed: bool | None
    found: str
    rule: str


def at_least(what: str, number: Estimate | float, bound: float, unit: str = "pp") -> Check:
    """`number` ≥ `bound`; undecided where the bound lies inside the interval.

    Args:
        what: was measured.
        number: in the same unit as `bound`; accuracies are fractions.
        bound: the least that passes.
        unit: `pp` and `%` show fractions as differences and shares; anything else follows the plain number.
    """
    estimate = _estimate(number)
    passed = True if estimate.low >= bound else False if estimate.high < bound else None
    return Check(passed, f"{what} {shown(estimate, unit)}", f"at least {_plain(bound, unit)}")


def at_most(what: str, number: Estimate | float, bound: float, unit: str = "pp") -> Check:
    """`number` ≤ `bound`; as `at_least`."""
    estimate = _estimate(number)
    passed = True if estimate.high <= bound else False if estimate.low > bound else None
    return Check(passed, f"{what} {shown(estimate, unit)}", f"at most {_plain(bound, unit)}")


def shown(number: Estimate | float, unit: str = "%") -> str:
    """`+12.3 pp [11.0, 13.6]`, or without brackets for an exact number; see `at_least` for the units."""
    estimate = _estimate(number)
    factor, form = (100.0, ".1f") if unit in ("pp", "%") else (1.0, ".3g")
    sign = "+" if unit == "pp" else ""
    text = f"{factor * estimate.value:{sign}{form}}{f' {unit}' if unit else ''}"
    if estimate.low == estimate.high:
        return text
    return f"{text} [{factor * estimate.low:{form}}, {factor * estimate.high:{form}}]"


def _plain(bound: float, unit: str) -> str:
    return f"{100 * bound:g} {unit}" if unit in ("pp", "%") else f"{bound:g} {unit}".strip()


def _estimate(number: Estimate | float) -> Estimate:
    return number if isinstance(number, Estimate) else Estimate(number, number, number)


@dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
        verdict: one of `VERDICTS`.
        value: our numbers with their intervals.
        why: a sentence for every verdict but *confirmed*.
    """

    verdict: str
    value: str = "–"
    why: str = ""


def conclude(checks: Sequence[Check], value: str = "") -> Finding:
    """The finding of a claim all of whose conditions must hold.

    Args:
        checks: the conditions.
        value: what to show instead of everything that was found.
    """
    failed = [check for check in checks if check.passed is False]
    open_ = [check for check in checks if check.passed is None]
    value = value or _listed([check.found for check in checks], _VALUES)
    if failed:
        return Finding(REFUTED, value, f"not so: {_asked(failed)}")
    if open_:
        return Finding(UNDECIDED, value, f"these images and seeds can't tell: {_asked(open_)}")
    return Finding(CONFIRMED, value)


def _asked(checks: Sequence[Check]) -> str:
    return _listed([f"{check.found} (asked: {check.rule})" for check in checks], _REASONS)


def _listed(texts: Sequence[str], most: int) -> str:
    more = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or about it, that our results can decide.

    Attributes:
        id: C01 … C45, K1 … K5.
        statement: what is claimed.
        measurement: how it is measured.
        paper: says what the paper prints or says.
        needs: what the rule reads beyond histories and outcomes of runs.
        rule: makes a finding from results; may raise `UnmetError` and `MissingResultError`.
    """

    id: str
    statement: str
    measurement: str
    paper: Callable[[], str]
    needs: tuple[Need, ...]
    rule: Callable[[Results], Finding]

    def judge(self, results: Results) -> Finding:
        """The finding, whatever is there; raises `DamagedError` for a damaged result only."""
        try:
            return self.rule(results)
        except MissingResultError as error:
            return Finding(NOT_MEASURED, why=str(error))
        except UnmetError as error:
            return Finding(UNDECIDED, why=str(error))


def claim(
    id: str, statement: str, measurement: str, *, paper: str | Callable[[], str], needs: Sequence[Need] = ()
) -> Callable[[Callable[[Results], Finding]], Claim]:
    """Make the decorated rule a `Claim`; the arguments are its attributes."""
    says = paper if callable(paper) else lambda: str(paper)
    return lambda rule: Claim(id, statement, measurement, says, tuple(needs), rule)
