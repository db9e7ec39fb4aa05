"""What a file says beside its weights: the description in our own files, and training facts in other people's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coprobe.checkpoint.candidates import module_attributes
from coprobe.checkpoint.reader.seal import ABOUT
from coprobe.checkpoint.reader.values import OpaqueObject, TensorSpec
from coprobe.errors import InputError

#: The format that is written now, with a seal over every byte, and the one before, without.
FORMAT, _UNSEALED = "coprobe/2", "coprobe/1"
#: The key of the latter's description in the metadata of a safetensors file.
_UNSEALED_ABOUT = "coprobe"
_ENTRIES = 20
_LONGEST = 60
_DEEPEST = 6
_PLAIN = (bool, int, float, str)
#: Keys under which public code keeps the arguments of a run.
ARGUMENTS = ("args", "opt", "opts", "options", "hyper_parameters", "hparams", "config", "cfg", "hyperparameters")
#: How many names of classes are written and read, and how many characters of each.
CLASSES, CLASS_NAME = 10_000, 200
_DAMAGED = "save it again, or its state_dict alone"


@dataclass(frozen=True)
class Description:
    """What one of our files says about itself; of anyone else's file, everything is empty."""

    format: str = ""
    arch: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] = ()


def read_description(payload: Any, metadata: Mapping[str, str], sealed: bool) -> Description:
    """The description in one of our files, with every value of the right type.

    Args:
        payload: of the file.
        metadata: of a safetensors file, else empty.
        sealed: whether the file carries a seal that fits.

    Raises:
        InputError: it is damaged, or of a newer coprobe.
    """
    text = metadata.get(ABOUT, metadata.get(_UNSEALED_ABOUT))
    said = payload if text is None else _from_metadata(text)
    written = said.get("format") if isinstance(said, dict) else None
    if written == FORMAT and not sealed:
        raise InputError("is damaged: it has lost its seal; copy it again, or take another checkpoint of the run")
    if written not in (FORMAT, _UNSEALED):
        if str(written).startswith("coprobe/"):
            raise InputError(f"has the format {str(written)[:40]} of a newer coprobe; upgrade coprobe")
        return Description()
    about = {key: said.get(key) or {} for key in ("arch_args", "preprocess", "recipe", "metrics")}
    wrong = [key for key, value in about.items() if not (isinstance(value, dict) and _is_plain(value))]
    arch, shape = said.get("arch"), said.get("image_shape")
    if not isinstance(arch, str | None):
        wrong.append("arch")
    if shape is not None and not (isinstance(shape, list | tuple) and [type(n) for n in shape] == [int] * 3):
        wrong.append("image_shape")
    classes = said.get("classes") or ()
    if not _are_names(classes):
        wrong.append("classes")
    if wrong:
        raise InputError(f"has a damaged description ({', '.join(wrong)}); {_DAMAGED}")
    return Description(str(written), arch, **about, image_shape=tuple(shape) if shape else None, classes=tuple(classes))


def _are_names(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) > CLASSES:
        return False
    return all(isinstance(name, str) and len(name) <= CLASS_NAME for name in value)


def _from_metadata(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"has a damaged description (no JSON); {_DAMAGED}") from None


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        return depth < _DEEPEST and all(isinstance(k, str) and _is_plain(v, depth + 1) for k, v in value.items())
    if isinstance(value, list | tuple):
        return depth < _DEEPEST and all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, _PLAIN)


def read_training_facts(
    payload: Any, metadata: Mapping[str, str], read: Callable[[TensorSpec], list[float]]
) -> dict[str, Any]:
    """Training facts in someone else's file (epoch, accuracy, arguments of the run): at most 20 short plain values.

    Args:
        payload: of the file.
        metadata: of a safetensors file, else empty.
        read: the elements of a stored tensor, for accuracies that are tensors of one element.
    """
    facts: dict[str, Any] = {}
    for key, value in _entries(payload, metadata):
        if len(facts) == _ENTRIES:
            break
        is_number = isinstance(value, TensorSpec) and value.numel() == 1 and not value.dtype.is_complex
        plain = read(value)[0] if is_number else value
        if isinstance(plain, _PLAIN):
            facts.setdefault(key[:_LONGEST], _short(plain))
    return facts


def _short(value: Any) -> Any:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    # str of an int of more than 4300 digits is an error
    text = value if isinstance(value, str) else hex(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _entries(payload: Any, metadata: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """The values at the top, then the arguments of the run, then the first knobs of the optimizer."""
    yield from ((key, value) for key, value in metadata.items() if key != "format")  # "pt": which library wrote it
    top = payload.attributes if isinstance(payload, OpaqueObject) else payload
    if not isinstance(top, dict) or module_attributes(payload):
        return
    # A tensor with a dot in its name is a weight of a bare state dict.
    yield from ((key, value) for key, value in top.items() if isinstance(key, str) and "." not in key)
    for key in ARGUMENTS:
        value = top.get(key)
        arguments = value.attributes or value.items if isinstance(value, OpaqueObject) else value
        if isinstance(arguments, dict):
            yield from ((name, item) for name, item in arguments.items() if isinstance(name, str))
    for key in ("optimizer", "optim", "optimizer_state_dict", "opt", "optimizer_states"):
        yield from _of_optimizer(top.get(key))


def _of_optimizer(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, OpaqueObject):
        yield "optimizer", value.name
        value = value.attributes
    groups = value.get("param_groups") if isinstance(value, dict) else None
    if isinstance(groups, list) and groups and isinstance(groups[0], dict):
        knobs = groups[0]
        yield from ((f"optimizer {name}", knobs[name]) for name in ("lr", "momentum", "weight_decay") if name in knobs)
