"""The fast inference form of a model: the same function, computed with less work, and checked to be the same."""

from __future__ import annotations

import copy
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from coprobe.core.engine import frozen, layout_of
from coprobe.errors import InputError, RunError, unknown
from coprobe.fast.winograd import Winograd, pays
from coprobe.models import Classifier
from coprobe.models.foreign import quiet, reason
from coprobe.nodes import CHECKED, Node, record, resolve

#: What the network computes in: `32` (float32 throughout), `tf32` (a GPU's tensor cores, 10 bits of mantissa), `bf16`.
PRECISIONS = ("32", "tf32", "bf16")

#: By how much the fast form may differ from the model, relative to the largest value.
TOLERANCE = 1e-4

#: Modules whose weights can be held in bfloat16 as they are; others run under autocast, which knows what to leave.
_CAST = (
    nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.Identity, nn.Sequential, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout,
)  # fmt: skip


class FastClassifier(Classifier):
    """What `fast` makes: a `Classifier` whose network is in evaluation mode, frozen, and in the layout of `layout_of`.

    Args:
        network: becomes so; a copy that nobody else has.
        like: the model that it is a copy of the network of.
        precision: see `PRECISIONS`.
        compiled: run passes in which nothing is recorded or masked through torch.compile.
        cast: hold the weights in bfloat16, where the precision is that and all modules are known; else autocast.
    """

    def __init__(
        self,
        network: nn.Module,
        like: Classifier,
        *,
        precision: str = "32",
        compiled: bool = False,
        cast: bool = True,
    ) -> None:
        super().__init__(network, like.mean, like.std, node_table=like.node_table)
        self.precision = precision
        self.compiled = compiled
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self._layout = layout_of(network)
        self.eval().to(device_of(like)).to(memory_format=self._layout)
        self._casts = precision == "bf16" and cast and all(_can_be_cast(module) for module in network.modules())
        if self._casts:
            for module in network.modules():
                if not isinstance(module, nn.BatchNorm2d):  # its few numbers stay exact, whatever comes in
                    module._apply(_to_bfloat16, recurse=False)
        # In a list, or the weights would be in the state dict twice.
        self._fast = [_compiled(network, device_of(like))] if compiled else []

    def forward(self, images: Tensor) -> Tensor:
        """Images N×C×H×W in [0, 1] to float32 logits N×classes."""
        if self._normalises:
            images = (images - self._mean) / self._std
        images = images.contiguous(memory_format=self._layout)
        if self._casts:
            return self._logits(images.bfloat16()).float()
        if self.precision == "bf16":
            with torch.autocast(images.device.type, torch.bfloat16):
                return self._logits(images).float()
        return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        # Hooks on the network are there while something is recorded or masked, which a compiled pass would not see.
        if not self._fast or self.network._forward_pre_hooks:
            logits: Tensor = self.network(images)
            return logits
        if images.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        try:
            logits = self._fast[0](images)
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
    say: Callable[[str], object] = warnings.warn,
) -> Classifier:
    """A copy of the model that computes the same with less work; the model itself is left as it is.

    It is in evaluation mode, its parameters need no gradients, batch norm behind a convolution is folded into it, and
    memory is laid out channels-last. Module paths, and so nodes and masks, are those of the model: where a node lies
    between a convolution and its batch norm, the two are left alone.

    In float32 on a CPU, wide 3×3 convolutions multiply less (see `coprobe.fast.winograd`), unless `compiled`, which
    does not see through them.

    Where the network's own code can be followed (torch.fx), batch norm is folded everywhere; else module by module;
    what can't be followed stays as it is. With `images` it is made sure, in float32 and on the first few of them, that
    logits and the activations at `nodes` are those of the model; if not, less is done, down to nothing.

    Args:
        model: images in [0, 1] to logits.
        images: float (batch, channels, height, width) in [0, 1], on the model's device, to check it on.
        nodes: names of nodes that will be recorded or masked.
        precision: see `PRECISIONS`.
        compiled: run the passes through torch.compile, with CUDA graphs on a GPU; passes with nodes or masks are not.
        say: told in a sentence where less is done than could be expected.

    Raises:
        InputError: unknown precision, one that the device doesn't have, or an unknown node.
    """
    check_precision(precision, device_of(model))
    watched = [resolve(model, name) for name in nodes]
    images = None if images is None else images[:CHECKED]
    expected = None if images is None else _seen(plain(model), images, nodes)
    said = ""
    for fold in (True, False):
        try:
            with quiet():
                network = copy.deepcopy(model.network).eval()
                if fold:
                    _fold_all(network, watched)
                if fold and precision == "32" and not compiled:
                    _multiply_less(network)
                if images is not None and expected is not None:
                    _check_same(expected, _seen(FastClassifier(network, model), images, nodes))
                made = _made(network, model, images, nodes, precision, compiled)
            if said:
                say(f"batch norm is not folded into convolutions: {said}")
            return made
        except Exception as error:  # whatever other people's networks raise when they are copied, followed or run
            said = reason(error)
    say(f"the model runs as it is, not in its fast form: {said}")
    return plain(model, precision)


def _made(
    network: nn.Module, like: Classifier, images: Tensor | None, nodes: Sequence[str], precision: str, compiled: bool
) -> FastClassifier:
    """The fast form in its precision; under autocast where code of the network mixes bfloat16 with other types."""
    if precision == "bf16" and images is not None:
        try:
            _seen(FastClassifier(copy.deepcopy(network), like, precision=precision), images, nodes)
        except RuntimeError:
            return FastClassifier(network, like, precision=precision, compiled=compiled, cast=False)
    return FastClassifier(network, like, precision=precision, compiled=compiled)


def plain(model: Classifier, precision: str = "32") -> Classifier:
    """The same network, not a copy, in another precision."""
    check_precision(precision, device_of(model))
    same = Classifier(model.network, model.mean, model.std, node_table=model.node_table).to(device_of(model))
    same.precision = precision
    return same


def device_of(model: nn.Module) -> torch.device:
    """Where its weights are; the CPU for one without."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def check_precision(precision: str, device: torch.device | str) -> None:
    """Raise `InputError` unless there is such a precision, and the device has it."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise InputError("--precision tf32: only CUDA GPUs have it; use 32 or bf16")


class DifferentError(Exception):
    """The fast form computes something else."""


def _seen(model: Classifier, images: Tensor, nodes: Sequence[str]) -> dict[str, Tensor]:
    """The logits and the activations at the nodes; the state of torch's generators is as before afterwards."""
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices), frozen(model), torch.no_grad(), record(model, nodes) as seen:
        logits = model(images)
    return {"the logits": logits, **{f"node '{name}'": seen[name] for name in nodes}}


def _check_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        scale = value.abs().amax()
        if scale.isfinite() and not torch.allclose(found[name], value, rtol=0, atol=TOLERANCE * float(scale)):
            off = float((found[name] - value).abs().amax() / scale)
            raise DifferentError(f"{name} would differ by {off:.1g} of their largest value")


def _fold_all(network: nn.Module, watched: Sequence[Node]) -> None:
    """Fold batch norm into the convolutions before it, and put an identity in its place.

    ReLUs work in place where nobody else has need of their input.
    """
    parts = list(_parts(copy.deepcopy(network), ""))  # a copy, since what follows its code may leave traces
    paths = {module: path for path, module in network.named_modules()}
    looked_at = [replace(node, path=paths[network.get_submodule(node.path)]) for node in watched]
    pairs = [pair for part in parts for pair in part.pairs() if _are_alone(network, pair)]
    for relu in (path for part in parts for path in part.lonely_relus() if _are_alone(network, (path,))):
        network.get_submodule(relu).inplace = True  # type: ignore[assignment]
    for convolution, norm in pairs:
        if not any(_is_between(node, convolution, norm) for node in looked_at):
            _fold(network, convolution, norm)


def _parts(module: nn.Module, path: str) -> Iterator[_Part]:
    """What torch.fx can follow: the whole module, else what it can follow of its parts."""
    try:
        nodes = list(fx.Tracer().trace(module).nodes)
    except Exception:  # code that depends on values, say
        for name, child in module.named_children():
            yield from _parts(child, f"{path}{name}.")
        return
    yield _Part(path, nodes, dict(module.named_modules()))


class _Part:
    """A module whose code could be followed.

    Args:
        path: what stands before the names of its modules; ends with a dot, or is empty.
        nodes: the calls that it makes, in order.
        modules: by name.
    """

    def __init__(self, path: str, nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module]) -> None:
        self._path, self._nodes, self._modules = path, nodes, modules
        self._calls = Counter(node.target for node in nodes if node.op == "call_module")
        self._direct = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}

    def _called(self, node: object) -> nn.Module | None:
        """The module that is called here, and nowhere else, and whose weights no other code uses."""
        if not (isinstance(node, fx.Node) and node.op == "call_module" and self._calls[node.target] == 1):
            return None
        return None if str(node.target) in self._direct else self._modules[str(node.target)]

    def _alone(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Every call of a module, and what its first argument comes from if that goes nowhere else."""
        for node in self._nodes:
            before = node.args[0] if node.op == "call_module" and node.args else None
            if isinstance(before, fx.Node) and len(before.users) == 1:
                yield node, before

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Paths of every convolution whose output goes to a batch norm and nowhere else, and of that batch norm."""
        for node, before in self._alone():
            if _can_be_folded(self._called(before), self._called(node)):
                yield f"{self._path}{before.target}", f"{self._path}{node.target}"

    def lonely_relus(self) -> Iterator[str]:
        """Paths of those whose input is a fresh tensor of which neither other code nor a backward pass has need."""
        for node, before in self._alone():
            relu, maker = self._called(node), self._called(before)
            is_sum = before.op == "call_function" and before.target in (operator.add, torch.add)
            if type(relu) is nn.ReLU and (is_sum or type(maker) in (nn.Conv2d, nn.BatchNorm2d)):
                hooked = _is_tampered_with(relu) or (maker is not None and _is_tampered_with(maker))
                if not hooked:
                    yield f"{self._path}{node.target}"


def _are_alone(network: nn.Module, paths: Sequence[str]) -> bool:
    """Whether these modules and their weights have no other place in the network."""
    them = [network.get_submodule(path) for path in paths]
    weights = {id(weight) for module in them for weight in module.parameters()}
    modules = list(network.named_modules(remove_duplicate=False))
    users = [module for _, module in modules if any(id(w) in weights for w in module._parameters.values())]
    places = [module for _, module in modules if any(module is one for one in them)]
    return len(places) == len(them) and all(any(user is one for one in them) for user in users)


def _can_be_folded(convolution: nn.Module | None, norm: nn.Module | None) -> bool:
    """Whether these are what they seem: no subclass, no hook, no weight that is computed from others."""
    return (
        type(convolution) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and norm.running_mean is not None
        and not any(_is_tampered_with(module) for module in (convolution, norm))
        and all(parameter.is_floating_point() for parameter in convolution.parameters())
    )


def _is_tampered_with(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _is_between(node: Node, convolution: str, norm: str) -> bool:
    """Whether a node is where batch norm has not been computed yet: the end of a module around the convolution alone,
    or the beginning of one around the batch norm alone.
    """
    if node.call is not None:
        return False
    inside, outside = (norm, convolution) if node.at_input else (convolution, norm)
    return _holds(node.path, inside) and not _holds(node.path, outside)


def _holds(path: str, module: str) -> bool:
    return not path or module == path or module.startswith(f"{path}.")


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    conv, bn = network.get_submodule(convolution), network.get_submodule(norm)
    assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
    assert bn.running_mean is not None and bn.running_var is not None
    given = (conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    exact = [None if tensor is None else tensor.detach().double() for tensor in given]
    weight, bias = fuse_conv_bn_weights(*exact[:4], bn.eps, *exact[4:])  # type: ignore[arg-type, call-arg]
    conv.weight, conv.bias = (nn.Parameter(tensor.to(conv.weight.dtype)) for tensor in (weight, bias))
    around, _, name = norm.rpartition(".")
    setattr(network.get_submodule(around), name, nn.Identity())


def _multiply_less(network: nn.Module) -> None:
    """Put `Winograd` in the place of the convolutions that it is faster than."""
    for path, module in list(network.named_modules()):
        if pays(module) and not _is_tampered_with(module) and _are_alone(network, (path,)):
            assert isinstance(module, nn.Conv2d)
            around, _, name = path.rpartition(".")
            setattr(network.get_submodule(around), name, Winograd(module))


def _can_be_cast(module: nn.Module) -> bool:
    """Whether a module does what its class and its submodules say, in any precision."""
    own = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    return isinstance(module, _CAST) or not own


def _to_bfloat16(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def _compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    # With CUDA graphs on a GPU, where to launch small kernels takes longer than to run them.
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Any = torch.compile(network, mode=mode, dynamic=False)
    return compiled
