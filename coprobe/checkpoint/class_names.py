"""Which logit stands for which class, as other people's files say it beside their weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from coprobe.checkpoint.description import ARGUMENTS, CLASS_NAME, CLASSES
from coprobe.checkpoint.reader.values import OpaqueObject

#: Keys of dicts from names to numbers, from numbers to names, and of names in order: torchvision's, Hugging Face's,
#: OpenMMLab's, timm's and those of tutorials.
_TO_NUMBER = ("class_to_idx", "label2id", "class_to_index")
_TO_NAME = ("idx_to_class", "id2label", "index_to_class")
_IN_ORDER = ("classes", "class_names", "CLASSES", "label_names", "categories")
_KEYS = (*_TO_NUMBER, *_TO_NAME, *_IN_ORDER)
#: Keys under which such entries stand together, beside those of the arguments of a run.
_AROUND = ("meta", "dataset_meta", "metadata", "data")
#: What Hugging Face writes where nobody gave names.
_PLACEHOLDER = re.compile(r"LABEL_\d+")


def read_class_names(
    payload: Any, metadata: Mapping[str, str], num_classes: int, config: Mapping[str, Any] | None = None
) -> tuple[tuple[str, ...], str]:
    """The names of the classes in the order of the logits, and what a person should know about them.

    Args:
        payload: of the file.
        metadata: of a safetensors file, else empty; such entries are JSON there.
        num_classes: how many logits the network gives.
        config: what stands in a `config.json` beside the file; the file itself counts first.

    Returns:
        The names, none where the file gives none that can be used; and a sentence where it gives some of those.
    """
    found = _found(_entries(payload, metadata)) or _found((key, value) for key, value in (config or {}).items())
    fitting = [names for names in found if len(names) == num_classes]
    if found and not fitting:
        names, key = next(iter(found.items()))
        return (), f"its '{key}' names {len(names)} classes for {num_classes} logits, so it is not used"
    if len(fitting) > 1:
        one, other = (found[names] for names in fitting[:2])
        return (), f"its '{one}' and '{other}' name the classes differently, so neither is used"
    return (fitting[0], "") if fitting else ((), "")


def _found(entries: Iterable[tuple[str, Any]]) -> dict[tuple[str, ...], str]:
    """The names in order, and the key of each."""
    found: dict[tuple[str, ...], str] = {}
    for key, value in entries:
        if key in _KEYS and (names := _named(key, value)):
            found.setdefault(names, key)
    return found


def _entries(payload: Any, metadata: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for key in _KEYS:
        if key in metadata:
            try:
                yield key, json.loads(metadata[key])
            except (ValueError, RecursionError):
                continue
    top = _dict_of(payload)
    for around in (top, *(_dict_of(top.get(key)) for key in (*ARGUMENTS, *_AROUND))):
        yield from ((key, around[key]) for key in _KEYS if key in around)
    for value in top.values():  # an attribute of a module that was pickled whole, as tutorials put it
        if isinstance(value, OpaqueObject):
            yield from ((key, value.attributes[key]) for key in _KEYS if key in value.attributes)


def _dict_of(value: Any) -> dict[Any, Any]:
    if isinstance(value, OpaqueObject):
        return {**(value.items if isinstance(value.items, dict) else {}), **value.attributes}
    return value if isinstance(value, dict) else {}


def _named(key: str, value: Any) -> tuple[str, ...]:
    """The names by number, if they are names, and the numbers 0, 1, … without a gap; else none."""
    pairs = _dict_of(value)
    said = len(pairs) if key not in _IN_ORDER else 0
    if key in _TO_NUMBER:
        pairs = {number: name for name, number in pairs.items()} if _hashable(pairs.values()) else {}
    elif key in _IN_ORDER or not pairs:
        pairs = dict(enumerate(value)) if isinstance(value, list | tuple) else {}
    names = {int(number): name for number, name in pairs.items() if _is_number(number)}
    if not 1 < len(names) <= CLASSES or len(names) < max(said, len(pairs)) or sorted(names) != list(range(len(names))):
        return ()
    ordered = tuple(names[number] for number in range(len(names)))
    if not all(isinstance(name, str) and 0 < len(name) <= CLASS_NAME for name in ordered):
        return ()
    return () if all(map(_PLACEHOLDER.fullmatch, ordered)) else ordered


def _hashable(values: Any) -> bool:
    return all(isinstance(value, int | str) for value in values)


def _is_number(value: Any) -> bool:
    is_text = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10
    return is_text or (isinstance(value, int) and not isinstance(value, bool))
