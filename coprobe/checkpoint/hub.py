"""The `config.json` in a folder as timm puts it on Hugging Face's hub: architecture, classes, normalisation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coprobe.checkpoint.description import CLASS_NAME, CLASSES
from coprobe.checkpoint.normalisation import Normalisation
from coprobe.core.files import about_file
from coprobe.errors import InputError

NAME = "config.json"
_LONGEST = 4 << 20
_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class HubConfig:
    """What the file says, as far as it can be used; everything is empty where there is none.

    Attributes:
        arch: `timm:NAME`; timm itself decides whether there is such a network.
        arch_args: arguments of its builder.
        normalisation: mean and standard deviation, one number per channel.
        classes: their names, in the order of the logits.
        said: all of it, for what other libraries write (`id2label`).
    """

    arch: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    normalisation: Normalisation | None = None
    classes: tuple[str, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)


def read_config(path: str | Path) -> HubConfig:
    """The configuration in the folder `path`; an empty one for anything else; another library's is only `said`.

    Raises:
        InputError: it is longer than any such file, or no JSON.
    """
    place = Path(path) / NAME
    try:
        if not place.is_file():
            return HubConfig()
        with place.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except (OSError, ValueError):  # a name that no file can have, or not for us to read
        return HubConfig()
    with about_file(place):
        try:
            said = json.loads(content) if len(content) <= _LONGEST else None
        except (ValueError, RecursionError):
            said = None
        if said is None:
            raise InputError("is no configuration in JSON; mend it, or name the file of weights beside it")
    if not isinstance(said, dict):
        return HubConfig()
    return _of_timm(said) if isinstance(said.get("architecture"), str) else HubConfig(said=said)


def _of_timm(said: Mapping[str, Any]) -> HubConfig:
    pretrained = said.get("pretrained_cfg")
    about = {**said, **(pretrained if isinstance(pretrained, dict) else {})}
    given = said.get("model_args")
    arch_args = {
        str(key): value
        for key, value in (given if isinstance(given, dict) else {}).items()
        if isinstance(value, _PLAIN)
    }
    classes = next((n for source in (said, about) if type(n := source.get("num_classes")) is int and n > 0), None)
    if classes:
        arch_args["num_classes"] = classes
    mean, std = (_numbers(about.get(key)) for key in ("mean", "std"))
    names = next((n for key in ("label_names", "labels") if isinstance(n := about.get(key), list)), [])
    known = len(names) <= CLASSES and all(isinstance(name, str) and len(name) <= CLASS_NAME for name in names)
    return HubConfig(
        f"timm:{said['architecture']}",
        arch_args,
        Normalisation(NAME, mean, std) if mean and len(mean) == len(std) else None,
        tuple(names) if known else (),
    )


def _numbers(value: Any) -> tuple[float, ...]:
    """A row of finite numbers; empty if it is something else."""
    is_row = isinstance(value, list) and all(type(n) in (int, float) and math.isfinite(n) for n in value)
    return tuple(map(float, value)) if is_row else ()
