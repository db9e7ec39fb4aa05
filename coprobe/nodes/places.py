"""Where a network can be probed: every place behind an activation function, and a guess of the five that matter."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coprobe.nodes.address import Node, network_of, node_table, resolve
from coprobe.nodes.channels import axis_at
from coprobe.nodes.functions import GATES, Call, FunctionHooks, Hook
from coprobe.nodes.hooks import hooks_at
from coprobe.nodes.modules import opaque_activations
from coprobe.nodes.survey import Layout, Survey

LETTERS = "ABCDE"


@dataclass(frozen=True)
class Place:
    """A place of a network.

    Attributes:
        path: the name of the node.
        letter: if it is one of `A` … `E`.
        shape: of one image's activation, channels first; without an axis as it is.
        function: the activation function behind which it lies; empty if the node table names another place.
        axis: at which the activation (batch, …) has its channels; None where that can't be told.
        rows: how many rows of the first axis belong to an image; 0 where that axis is not the images.
    """

    path: str
    letter: str
    shape: tuple[int, ...]
    function: str = ""
    axis: int | None = 1
    rows: int = 1


def places(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Place]:
    """Every place behind an activation function in the order of execution, and what else the node table names.

    A place is named by its activation module if a pass calls that once, else by the caller: `layer1.0#relu2`. No places
    are calls that are a part of a written-out function (the gate of x·σ(x)) or that do not depend on the images.

    Args:
        model: any module.
        image_shape: (channels, height, width) of the images it takes.
    """
    network = network_of(model)
    parameter = next(model.parameters(), torch.zeros(0))
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    letters = {path: letter for letter, path in node_table(model).items()}
    opaque = [path for path in opaque_activations(network, image) if path not in letters]
    survey = Survey()
    parts: set[Any] = set()

    def note(what: Call | str) -> Hook:
        def keep(activation: Tensor) -> None:
            if isinstance(what, Call):
                parts.update(what.parts)
                survey.see(what._replace(parts=frozenset()), activation)
            else:
                survey.see(what, activation)

        return keep

    owners = [path for path, _ in network.named_modules()]
    named = [(resolve(model, path), note(path)) for path in [*letters, *opaque]]
    functions = FunctionHooks(network, lambda call: (note(call),), owners, formulas=True)
    with functions.attached(), hooks_at(model, named):
        survey.run(model, image)
    passed = list(survey.places())
    calls_through = Counter(what.through for what, _ in passed if isinstance(what, Call))
    found: dict[str, Place] = {}
    for what, shape in passed:
        if isinstance(what, str):
            name, function = what, type(network.get_submodule(what)).__name__.lower() if what in opaque else ""
        elif what[:3] in parts or not survey.may_depend_on_images(what):
            continue
        else:
            once = what.through and calls_through[what.through] == 1
            name, function = what.through if once else f"{what.owner}#{what.function}{what.number}", what.function
        if name not in found:
            found[name] = _place(resolve(model, name), letters.get(name, ""), function, shape, survey.layout(what))
    return list(found.values())


def _place(node: Node, letter: str, function: str, shape: torch.Size, layout: Layout) -> Place:
    axis = axis_at(node, shape, layout)
    if layout.images is None:
        return Place(node.name, letter, tuple(shape[1:]), function, axis, 0)
    if axis is None or len(shape) < 2:
        return Place(node.name, letter, tuple(shape[1:]), function, axis, layout.folded)
    one = layout.images_first(torch.empty(shape, device="meta"), axis).shape[1:]
    return Place(node.name, letter, tuple(one), function, axis, layout.folded)


def guess_table(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, str]:
    """Nodes `A` … `E` for a network without a table: {} if it has no activation function.

    Places are told apart by their resolution: A is the first place of all (the stem's), the others are the last place
    of each resolution; where these are more than five, `A` … `E` are the last places of the first five resolutions. A
    network of one resolution, as a transformer is, gets five places evenly from the first to the last. Places
    without positions count only if there are no others, or where a network for large images ends in single pixels:
    not behind the pooling, and not in squeeze-and-excitation. Sigmoid, Tanh and their like count only in a network
    without others, since they mostly make gates. Places whose channels or images can't be told don't count.

    Args:
        model: any module.
        image_shape: (channels, height, width) of the images it takes.
    """
    seen = [place for place in places(model, image_shape) if place.function and place.axis is not None and place.rows]
    everywhere = [place for place in seen if place.function not in GATES] or seen
    wide = [number for number, place in enumerate(everywhere) if math.prod(place.shape[1:]) > 1]
    tail = max(wide, default=-1)
    candidates = [
        place
        for number, place in enumerate(everywhere)
        if number in wide or (number > tail and (len(place.shape) == 3 or not wide))
    ]
    if not candidates:
        return {}
    last = {place.shape[1:]: number for number, place in enumerate(candidates)}
    if len(last) == 1:
        end = len(candidates) - 1
        chosen = {round(end * step / (len(LETTERS) - 1)) for step in range(len(LETTERS))}
    else:
        chosen = {0, *last.values()}
        if len(chosen) > len(LETTERS):
            chosen = set(list(last.values())[: len(LETTERS)])
    return {letter: candidates[number].path for letter, number in zip(LETTERS, sorted(chosen), strict=False)}
