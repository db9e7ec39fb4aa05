"""What is said of weights that don't fit: what differs, which options do without, and the whole list for who asks."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from coprobe.errors import InputError
from coprobe.models import Difference, shape_of
from coprobe.models.public import SOURCES

if TYPE_CHECKING:
    from coprobe.checkpoint.candidates import Candidate
    from coprobe.checkpoint.matching import Match

#: Up to so many differences, the architecture is probably the right one.
_FEW = 5
#: More patterns than these are no hint.
_MOST_PATTERNS, _MOST_FRONTS = 4, 6
_SHOWN, ROOM, _LONG = 5, 110, 30
_ALL = "; 'coprobe inspect --weights' lists all"


class MisfitError(InputError):
    """The weights of a file fit no network that they may be meant for.

    Attributes:
        candidate: where in the file they are.
        match: with the network that differs least; None if none is like it.
    """

    def __init__(self, message: str, candidate: Candidate, match: Match | None) -> None:
        super().__init__(message)
        self.candidate = candidate
        self.match = match


@dataclass(frozen=True)
class Row:
    """A weight of the file, of the network, or of both.

    Attributes:
        name: in the file; empty if it is not there.
        shape: there, as people write it.
        network_name: in the network; empty if it is not there.
        network_shape: there.
        side: "both", "file", "network", or "shapes differ".
    """

    name: str
    shape: str
    network_name: str
    network_shape: str
    side: str


def rows_of(candidate: Candidate, match: Match | None) -> list[Row]:
    """All weights of a candidate, in the file's order, then what the network that it is compared with has besides."""
    if match is None:
        return [Row(name, shape_of(weight), "", "", "file") for name, weight in candidate.weights.items()]
    own = {name: shape_of(t) for name, t in match.network.state_dict().items() if isinstance(t, Tensor)}
    rows = []
    for name, weight in match.remap.weights.items():
        shape, there = shape_of(weight), own.get(name)
        side = "file" if there is None else "both" if there == shape else "shapes differ"
        rows.append(Row(match.remap.originals[name], shape, name if there else "", there or "", side))
    rows += [Row(name, shape_of(weight), "", "", "file") for name, weight in match.remap.unexpected.items()]
    left = {name: candidate.weights[name] for name in match.remap.allowed if name in candidate.weights}
    rows += [Row(name, shape_of(weight), "", "", "file") for name, weight in left.items()]
    return rows + [
        Row("", "", name, shape, "network") for name, shape in own.items() if name not in match.remap.weights
    ]


def differs(match: Match) -> str:
    """That the weights don't fit the network that a person or the file names."""
    count = len(match.differences)
    option = "--arch" if match.is_ours or match.arch.partition(":")[0] in SOURCES else "--model"
    added = next((f", with {step}" for step in match.remap.steps if step.endswith(" added")), "")
    remedy = allowing(match) + f"name another {option} or its {option}-arg"
    return f"{count} weights don't fit {match.arch}{added} ({_differences(match)}); {remedy}{_rest(match)}"


def fits_none(candidates: list[Candidate], best: Match | None) -> str:
    """Why the weights belong to no known architecture, and how to say which it is."""
    remedy = "name it with --arch or --model"
    largest = max(candidates, key=lambda candidate: candidate.size)
    others = [other for other in candidates if other is not largest and 2 * other.size > largest.size]
    if others:
        remedy += f", or take another network of the file: {', '.join(f'--pick {o.label[:30]}' for o in others)}"
    if best is not None:
        count, shown = len(best.differences), _differences(best, ROOM - 50)
        closest = f"nearest is {best.arch}, where {count} differ ({shown})"
        return f"the weights fit no known architecture: {closest}; {allowing(best)}{remedy}"
    first = [f"{key[:40]} {shape_of(weight)}" for key, weight in largest.weights.items()]
    return f"the {len(first)} weights fit no known architecture ({listed(first, ROOM - 50)}); {remedy}"


def _differences(match: Match, room: int = ROOM) -> str:
    return listed(match.differences, room)


def _rest(match: Match) -> str:
    return _ALL if _differences(match).endswith(", …") else ""


def allowing(match: Match) -> str:
    """The options that do without all weights that are missing or too many; empty if it is more than that."""
    by_kind: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshapen": []}
    for difference in match.differences:
        by_kind[difference.kind].append(difference.name)
    if by_kind["misshapen"] or len(by_kind["missing"]) > _FEW:
        return ""
    fitting = _fitting(match.remap.weights, match.differences)
    originals = {match.remap.originals.get(name, name) for name in fitting}
    parts = []
    for kind in ("missing", "unexpected"):
        patterns = fewest_patterns(by_kind[kind], fitting | originals)
        if len(patterns) > _MOST_PATTERNS:
            return ""
        parts += [f"--allow-{kind} '{pattern}'" for pattern in patterns]
    return f"{' '.join(parts)} {'does' if len(parts) == 1 else 'do'} without, or "


def _fitting(names: Collection[str], differences: Sequence[Difference]) -> set[str]:
    return set(names) - {difference.name for difference in differences}


def fewest_patterns(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Few fnmatch patterns that match all of `names` and none of `others`: a name, `front.*` or `*last`."""
    fronts = {front for other in others for front in _fronts(other)}
    left = list(dict.fromkeys(names))
    patterns: list[str] = []
    ends = {end for end in {name.rpartition(".")[2] for name in left} if any(o.endswith(end) for o in others)}
    while left and len(patterns) <= _MOST_PATTERNS:
        counts: Counter[tuple[str, str]] = Counter()
        for name in left:
            counts.update(("front", front) for front in _fronts(name) if front not in fronts)
            if (end := name.rpartition(".")[2]) not in ends:
                counts["end", end] += 1
        (kind, part), count = min(counts.items(), key=_order, default=(("", ""), 0))
        if count < 2:
            patterns.append(_short(left.pop(0), others))
        elif kind == "front":
            patterns.append(f"{glob.escape(part)}*")
            left = [name for name in left if not name.startswith(part)]
        else:
            patterns.append(f"*{glob.escape(part)}")
            left = [name for name in left if not name.endswith(part)]
    return patterns


def _order(one: tuple[tuple[str, str], int]) -> tuple[int, bool, int, str]:
    """Most names first; of as many, the longest front, then ends."""
    (kind, part), count = one
    return -count, kind != "front", -len(part) * (kind == "front"), part


def _fronts(name: str) -> list[str]:
    """`a.b.c` begins with `a.` and `a.b.`; more than a few of these are no use."""
    parts = name.split(".", _MOST_FRONTS)[:-1]
    return [f"{'.'.join(parts[: place + 1])}." for place in range(len(parts))]


def _short(name: str, others: Collection[str]) -> str:
    """A pattern for one name, cut where it is long and no other name begins so."""
    start = name[: _LONG - 1]
    if len(name) <= _LONG or any(other.startswith(start) for other in others):
        return glob.escape(name)
    return f"{glob.escape(start)}*"


def listed(items: Sequence[object], room: int = ROOM) -> str:
    """The first few items that have room, and that there are more."""
    shown: list[str] = []
    for item in map(str, items[:_SHOWN]):
        if shown and len(", ".join([*shown, item])) > room:
            break
        shown.append(item)
    return ", ".join(shown) + (", …" if len(shown) < len(items) else "")
