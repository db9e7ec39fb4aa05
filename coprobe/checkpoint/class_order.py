"""The classes of images and those of a model, matched by name, so that a label means what the model means by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from coprobe.checkpoint.description import CLASS_NAME
from coprobe.core.text import cut, printable
from coprobe.errors import InputError

_SHOWN = 3


@dataclass(frozen=True)
class ClassMatch:
    """How the classes of images go with those of a model.

    Attributes:
        places: of each class of the images, which logit stands for it; None where names can't tell, so that labels
            stay as they are.
        sentence: what a person should know; empty if there is nothing.
    """

    places: tuple[int, ...] | None = None
    sentence: str = ""


class Reordered(nn.Module):
    """A model whose logits stand in another order.

    Args:
        model: images to logits.
        order: which of its logits comes first, second, ….
    """

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.order = list(order)
        self.precision = getattr(model, "precision", "32")

    def forward(self, images: Tensor) -> Tensor:
        """Images N×C×H×W in [0, 1] to logits N×classes."""
        logits: Tensor = self.model(images)
        return logits[:, self.order]


def match_classes(own: Sequence[str], theirs: Sequence[str]) -> ClassMatch:
    """Match the classes of images with those of a model by name.

    Case, blanks and punctuation make no difference where the names can be told apart without them. Numbers are names
    only where both sides have the same: those of a data set without names are its labels.

    Args:
        own: the model's classes, in the order of the logits; empty if it doesn't say.
        theirs: those of the images, in the order of their labels.

    Raises:
        InputError: some names are in another order or only some of the model's, and others are none of them.
    """
    if not own or not theirs or tuple(own) == tuple(theirs):
        return ClassMatch()
    numbered = any(all(map(str.isdecimal, map(_letters, names))) for names in (own, theirs))
    places, unmatched = _places(own, theirs)
    if numbered and (unmatched or len(own) != len(theirs)):
        return ClassMatch()
    if len(unmatched) == len(theirs):
        return ClassMatch(
            sentence=f"the images' classes are {_first(theirs)}, and the model was trained on {_first(own)}; "
            "labels may mean other things"
        )
    strangers = _first([theirs[label] for label in unmatched])
    left = sorted({*range(len(own))}.difference(places))
    if len(own) == len(theirs) and all(place in (None, label) for label, place in enumerate(places)):
        called = f"the images' classes {strangers} are called {_first([own[k] for k in left])} by the model"
        return ClassMatch(sentence=f"{called}, and all others alike; labels are taken to mean the same" * bool(left))
    if unmatched and (len(unmatched), len(left)) != (1, 1):
        named = _first([own[place] for place in left])
        raise InputError(f"the images' classes {strangers} are none of the model's; call them as it does ({named})")
    ordered = tuple(left[0] if place is None else place for place in places)
    only = f"; '{strangers}' is taken for '{_cut(own[left[0]])}', the only one left" if unmatched else ""
    return ClassMatch(ordered, f"{_difference(own, theirs, ordered)}, so labels are matched by name{only}")


def _difference(own: Sequence[str], theirs: Sequence[str], places: Sequence[int]) -> str:
    few = f"the images have {len(theirs)} of the model's {len(own)} classes"
    label = next((label for label, place in enumerate(places) if label != place), None)
    if label is None:
        return few
    what = few if len(theirs) < len(own) else "the model has its classes in another order"
    return f"{what} ('{_cut(theirs[label])}' is label {label} of the images and logit {places[label]} of the model)"


def _places(own: Sequence[str], theirs: Sequence[str]) -> tuple[list[int | None], list[int]]:
    """Of each of their classes the number in `own`, or None; and which have None."""
    best: list[int | None] = [None] * len(theirs)
    for form in (_as_kept, _letters):
        numbers = _told_apart(own, form)
        unique = _told_apart(theirs, form)
        taken = set(best)
        for label, name in enumerate(map(form, theirs)):
            if best[label] is None and unique.get(name) == label and numbers.get(name) not in taken:
                best[label] = numbers.get(name)
    return best, [label for label, place in enumerate(best) if place is None]


def _told_apart(names: Sequence[str], form: Callable[[str], str]) -> dict[str, int]:
    """The numbers of the names that are unlike all others."""
    formed = [form(name) for name in names]
    numbers = {name: number for number, name in enumerate(formed)}
    return {name: number for name, number in numbers.items() if name and formed.count(name) == 1}


def _as_kept(name: str) -> str:
    return name[:CLASS_NAME]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name[:CLASS_NAME].casefold()))


def _cut(name: str) -> str:
    return cut(printable(name), 30)


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(_cut, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
