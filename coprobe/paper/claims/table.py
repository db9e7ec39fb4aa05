"""All claims with their verdicts, as a table and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from coprobe.core.files import records
from coprobe.errors import unknown
from coprobe.paper.claims import controls, inducing, mechanism, mitigation, noise, training
from coprobe.paper.claims.record import REFUTED, UNDECIDED, Claim
from coprobe.paper.needs import Need, merged
from coprobe.paper.results import Results
from coprobe.paper.runs import RUNS

_GROUPS = (mechanism.CLAIMS, mitigation.CLAIMS, inducing.CLAIMS, noise.CLAIMS, training.CLAIMS)
#: The paper's claims, C01 … C45.
CLAIMS: tuple[Claim, ...] = tuple(sorted((claim for group in _GROUPS for claim in group), key=lambda claim: claim.id))
#: What decides how C29, C32, C41 and C43 may be read, K1 … K5.
CONTROLS: tuple[Claim, ...] = controls.CONTROLS


def needs() -> list[Need]:
    """What must be measured for all claims and controls, of the runs that the plan has."""
    wanted = (need for claim in (*CLAIMS, *CONTROLS) for need in claim.needs)
    return merged(need for need in wanted if need.run in RUNS)


def chosen(ids: Sequence[str]) -> list[Claim]:
    """The claims and controls of these ids, in any case; `InputError` for an unknown one."""
    known = {claim.id: claim for claim in (*CLAIMS, *CONTROLS)}
    for id in ids:
        if id.upper() not in known:
            raise unknown("claim", id.upper(), known)
    return [known[id.upper()] for id in ids]


def judged(results: Results, claims: Sequence[Claim] = (*CLAIMS, *CONTROLS)) -> pd.DataFrame:
    """A row per claim: id, statement, measurement, verdict, value, paper, why, scale, seeds.

    Args:
        results: what there is at one scale.
        claims: which.

    Raises:
        DamagedError: a result was changed since it was written.
    """
    rows = []
    for claim in claims:
        finding = claim.judge(results)
        rows.append(
            {
                "id": claim.id,
                "statement": claim.statement,
                "measurement": claim.measurement,
                "verdict": finding.verdict,
                "value": finding.value,
                "paper": claim.paper(),
                "why": finding.why,
                "scale": results.scale.name,
                "seeds": results.seeds_shown(results.runs),
            }
        )
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame) -> str:
    """What `judged` gives as a table, and below it a paragraph per claim that is refuted or undecided."""
    lines = ["| id | statement | ours | paper | verdict |", "|---|---|---|---|---|"]
    rows = records(frame)
    for row in rows:
        shown = (row[column].replace("|", "\\|") for column in ("id", "statement", "value", "paper", "verdict"))
        lines.append("| " + " | ".join(shown) + " |")
    for row in rows:
        if row["verdict"] in (REFUTED, UNDECIDED):
            lines += ["", f"**{row['id']}, {row['verdict']}.** {row['statement']} {_sentence(row['why'])}"]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""
