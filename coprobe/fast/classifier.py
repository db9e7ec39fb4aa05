"""The fast inference form of a model: the same function, computed with less work, and checked to be the same."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from coprobe.core.engine import frozen
from coprobe.core.processes import ALONE, Processes
from coprobe.core.randomness import seeded
from coprobe.errors import RunError
from coprobe.fast.choice import fastest
from coprobe.fast.form import PLAIN, Form, forms
from coprobe.fast.layout import CopyingViews, layout_of
from coprobe.fast.precision import can_hold_bfloat16, check_precision, hold_bfloat16
from coprobe.models import Classifier
from coprobe.models.foreign import quiet, reason
from coprobe.nodes import CHECKED, record, resolve

#: By how much the fast form may differ from the model, relative to the largest value.
TOLERANCE = 1e-4


#: What torch says where a `view` counts on another layout.
_VIEW = "view size is not compatible"


class FastClassifier(Classifier):
    """What `fast` makes: a `Classifier` whose network is in evaluation mode and needs no gradients of its weights.

    Args:
        network: becomes so; a copy that nobody else has.
        like: the model that it is a copy of the network of.
        form: the stages that were taken on it; that of the layout is taken here.
        precision: see `PRECISIONS`.
        compiled: run passes in which nothing is recorded or masked through torch.compile.
        autocast: in bfloat16, leave the weights in float32, as for networks with modules that are not known.
        copies_views: let `x.view(…)` copy, since the network counts on another layout than that of the form.
    """

    def __init__(
        self,
        network: nn.Module,
        like: Classifier,
        form: Form,
        *,
        precision: str = "32",
        compiled: bool = False,
        autocast: bool = False,
        copies_views: bool = False,
    ) -> None:
        super().__init__(network, like.mean, like.std, node_table=like.node_table, channel_axes=like.channel_axes)
        self.form = form
        self.precision = precision
        self.compiled = compiled
        self._copies_views = copies_views
        self._layout = layout_of(network) if form.channels_last else torch.contiguous_format
        self.requires_grad_(False).eval().to(device_of(like)).to(memory_format=self._layout)
        self._holds_bfloat16 = precision == "bf16" and not autocast and can_hold_bfloat16(network)
        if self._holds_bfloat16:
            hold_bfloat16(network)
        # In a list, or the weights would be in the state dict twice.
        self._compiled = [_compiled(network, device_of(like))] if compiled else []

    def forward(self, images: Tensor) -> Tensor:
        """Images N×C×H×W in [0, 1] to float32 logits N×classes."""
        images = self.normalised(images).contiguous(memory_format=self._layout)
        if self._holds_bfloat16:
            return self._logits(images.bfloat16()).float()
        if self.precision == "bf16":
            with torch.autocast(images.device.type, torch.bfloat16):
                return self._logits(images).float()
        return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        # Hooks on the network are there while something is recorded or masked, which a compiled pass would not see.
        if not self._compiled or self.network._forward_pre_hooks:
            with CopyingViews() if self._copies_views else nullcontext():
                logits: Tensor = self.network(images)
            return logits
        if images.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            logits = self._compiled[0](images)
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise RunError(f"torch.compile fails ({reason(error)}); leave out --compile") from error
            raise
        return logits.clone()  # the next pass of a CUDA graph writes over its outputs


def fast(
    model: Classifier,
    *,
    images: Tensor | None = None,
    nodes: Sequence[str] = (),
    precision: str = "32",
    compiled: bool = False,
    form: Form | None = None,
    processes: Processes = ALONE,
    say: Callable[[str], object] = warnings.warn,
) -> Classifier:
    """A copy of the model that computes the same with less work; the model itself is left as it is.

    It is in evaluation mode and its parameters need no gradients; what else is done is its `form`. Module paths, and so
    nodes and masks, are those of the model: where a node lies between a convolution and its batch norm, the two are
    left alone.

    With `images` it is made sure, in float32 and on the first few of them, that logits and the activations at `nodes`
    are those of the model; if not, or if the network can't be run so, less is done, down to nothing.

    Args:
        model: images in [0, 1] to logits.
        images: float (batch, channels, height, width) in [0, 1], on the model's device, to check it on.
        nodes: names of nodes that will be recorded or masked.
        precision: see `coprobe.fast.precision.PRECISIONS`.
        compiled: run the passes through torch.compile, with CUDA graphs on a GPU; passes with nodes or masks are not.
        form: which stages to take; None takes the fastest on this machine (see `coprobe.fast.choice`), or without
            images the default.
        processes: those that work together, each of which makes the same form; process 0 chooses it.
        say: told in a sentence where less is done than could be expected.

    Raises:
        InputError: unknown precision, one that the device doesn't have, or an unknown node.
    """
    check_precision(precision, device_of(model))
    watched = [resolve(model, name) for name in nodes]
    if form is None:
        form = processes.broadcast(_fastest_form(model, images, precision, compiled) if processes.leads else PLAIN)
    images = None if images is None else images[:CHECKED]
    expected = None if images is None else _seen(plain(model), images, nodes)
    said = ""
    attempts = [(form, False), (form, True), (Form(form.fold, channels_last=False), False), (PLAIN, False)]
    for less, copies_views in dict.fromkeys(attempts):
        if copies_views and (compiled or _VIEW not in said):
            continue
        try:
            with quiet(), frozen(model):  # so that the copy is in its own evaluation mode already
                network = copy.deepcopy(model.network)
                less.build(network, watched)
                if images is not None and expected is not None:
                    tried = FastClassifier(network, model, less, copies_views=copies_views)
                    _check_same(expected, _seen(tried, images, nodes))
                made = FastClassifier(
                    network, model, less, precision=precision, compiled=compiled, copies_views=copies_views,
                    autocast=precision == "bf16" and images is not None and not _bears_bfloat16(network, model, images),
                )  # fmt: skip
            if form.fold and not less.fold:
                say(f"batch norm is not folded into convolutions: {said}")
            elif form.channels_last and not less.channels_last:
                remedy = "; write x.flatten(1) for x.view(x.size(0), -1)" if _VIEW in said else ""
                say(f"images and activations don't lie channels-last, in which convolutions are faster: {said}{remedy}")
            return made
        except Exception as error:  # whatever other people's networks raise when they are copied, followed or run
            said = reason(error)
    say(f"the model runs as it is, not in its fast form: {said}")
    return plain(model, precision)


def plain(model: Classifier, precision: str = "32") -> Classifier:
    """The same network, not a copy, in another precision."""
    check_precision(precision, device_of(model))
    same = Classifier(
        model.network, model.mean, model.std, node_table=model.node_table, channel_axes=model.channel_axes
    ).to(device_of(model))
    same.precision = precision
    return same


def device_of(model: nn.Module) -> torch.device:
    """Where its weights are; the CPU for one without."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _fastest_form(model: Classifier, images: Tensor | None, precision: str, compiled: bool) -> Form:
    candidates = forms(precision, device_of(model), compiled)

    def make(form: Form) -> Classifier:
        return fast(model, images=images, precision=precision, form=form, say=lambda text: None)

    return candidates[0] if images is None else fastest(candidates, make, model, images, precision)


class DifferentError(Exception):
    """The fast form computes something else."""


def _seen(model: Classifier, images: Tensor, nodes: Sequence[str] = ()) -> dict[str, Tensor]:
    """The logits and the activations at the nodes; whatever is drawn is the same in every call."""
    with seeded(0, images.device), frozen(model), torch.no_grad(), record(model, nodes) as seen:
        logits = model(images)
    return {"the logits": logits, **{f"node '{name}'": seen[name] for name in nodes}}


def _check_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        finite = value.isfinite() & found[name].isfinite()  # classes may be ruled out by −∞, and an image give NaN
        if not finite.any():
            continue
        scale = value[finite].abs().amax()
        if not torch.allclose(found[name][finite], value[finite], rtol=0, atol=TOLERANCE * float(scale)):
            off = float((found[name] - value)[finite].abs().amax() / scale)
            raise DifferentError(f"{name} would differ by {off:.1g} of their largest value")


def _bears_bfloat16(network: nn.Module, like: Classifier, images: Tensor) -> bool:
    """Whether no code of the network mixes bfloat16 with other types where its weights are held in it."""
    try:
        _seen(FastClassifier(copy.deepcopy(network), like, PLAIN, precision="bf16"), images)
    except RuntimeError:
        return False
    return True


def _compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    # With CUDA graphs on a GPU, where to launch small kernels takes longer than to run them.
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Any = torch.compile(network, mode=mode, dynamic=False)
    return compiled
