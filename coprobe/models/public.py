"""The networks of torchvision, timm and RobustBench, by name or by the names and shapes of their weights.

Only architectures come from here, with random weights. Nothing is downloaded and no file of weights is read.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from coprobe.errors import InputError, unknown
from coprobe.models.catalog import COUNTER
from coprobe.models.foreign import quiet, reason, some

SOURCES = ("torchvision", "timm", "robustbench")

#: Arguments that would bring weights, by download or through an unsafe reader; a checkpoint has its own.
_BRING_WEIGHTS = ("weights", "pretrained", "checkpoint_path")

#: torchvision's classifiers by their number of weights (batch-norm counters left out), so that few are compared.
_BY_SIZE: Mapping[int, str] = {
    16: "alexnet",
    22: "vgg11",
    26: "vgg13",
    32: "vgg16",
    38: "vgg19",
    52: "squeezenet1_0 squeezenet1_1",
    54: "vgg11_bn",
    66: "vgg13_bn",
    84: "vgg16_bn",
    102: "resnet18 vgg19_bn",
    152: "vit_b_16 vit_b_32",
    182: "convnext_tiny resnet34",
    185: "swin_t",
    210: "mobilenet_v3_small",
    233: "swin_v2_t",
    262: "mobilenet_v2 mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    266: "mobilenet_v3_large",
    267: "resnet50 resnext50_32x4d wide_resnet50_2 regnet_x_800mf",
    282: "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    287: "googlenet",
    293: "regnet_y_800mf",
    296: "vit_l_16 vit_l_32",
    297: "regnet_x_1_6gf",
    305: "googlenet",
    311: "efficientnet_b0",
    331: "regnet_y_400mf",
    344: "convnext_small convnext_base convnext_large",
    350: "regnet_y_8gf",
    353: "swin_s swin_b",
    357: "regnet_x_400mf regnet_x_16gf",
    369: "regnet_y_16gf",
    372: "regnet_x_8gf regnet_x_32gf",
    392: "vit_h_14",
    402: "regnet_x_3_2gf",
    407: "regnet_y_32gf",
    426: "regnet_y_3_2gf",
    439: "efficientnet_b1 efficientnet_b2",
    449: "swin_v2_s swin_v2_b",
    472: "inception_v3",
    484: "inception_v3",
    496: "efficientnet_b3",
    522: "resnet101 resnext101_32x8d resnext101_64x4d wide_resnet101_2",
    540: "regnet_y_1_6gf regnet_y_128gf",
    548: "maxvit_t",
    606: "densenet121",
    610: "efficientnet_b4",
    672: "efficientnet_v2_s",
    738: "efficientnet_b5",
    777: "resnet152",
    806: "densenet161",
    846: "densenet169",
    852: "efficientnet_b6",
    963: "efficientnet_v2_m",
    1006: "densenet201",
    1037: "efficientnet_b7",
    1331: "efficientnet_v2_l",
}
#: How the names of some weights begin in which of their families, so that fewer still are compared.
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "features.": ("alexnet", "vgg", "squeezenet", "convnext", "swin", "mobilenet", "efficientnet", "densenet"),
    "layer1.": ("resnet", "resnext", "wide_resnet"),
    "layers.": ("mnasnet",),
    "stage2.": ("shufflenet",),
    "trunk_output.": ("regnet",),
    "encoder.": ("vit",),
    "blocks.": ("maxvit",),
    "inception3a.": ("googlenet",),
    "Mixed_5b.": ("inception",),
}
#: A file with so many weights more or fewer than a network may still be meant for it.
_NEAR = 5
#: Sizes of those that were built without their auxiliary heads, which torchvision's own weights lack.
_WITHOUT_AUXILIARY = (287, 472)
#: Their last layers; the first dimension of its weight and bias is the number of classes.
_HEADS = ("fc", "head", "heads.head", "classifier", *(f"classifier.{i}" for i in (6, 5, 3, 2, 1)))


def public_network(arch: str, **arch_args: Any) -> nn.Module:
    """A randomly initialised network of torchvision, timm or RobustBench. Nothing is ever downloaded.

    Args:
        arch: `torchvision:resnet50`, `timm:resnet18.a1_in1k`, `robustbench:Wong2020Fast` or, where several data sets
            or threat models have the name, `robustbench:cifar100/Linf/NAME` (without them CIFAR-10 and Linf win).
        arch_args: arguments of the builder (`num_classes`, …); most of RobustBench's take none.

    Raises:
        InputError: no such source or network, an argument or value that it can't have or that would bring weights,
            or the library is not installed or broken.
    """
    source, _, name = arch.partition(":")
    finders = {"torchvision": _torchvision, "timm": _timm, "robustbench": _robustbench}
    if source not in finders:
        raise unknown("source of networks", source, SOURCES)
    for argument, value in arch_args.items():
        if argument.startswith(_BRING_WEIGHTS):
            raise InputError(f"{argument}={value!r} would bring weights; leave it out, the checkpoint has its own")
    classes = arch_args.get("num_classes", 1)
    if type(classes) is not int or classes < 1:
        raise InputError(f"num_classes={classes!r} is not a positive int")
    make = finders[source](name)
    try:
        with quiet(), _offline(arch):
            return _made(make, arch_args)
    except InputError:
        raise
    except Exception as error:  # other people's builders raise what they like
        given = some([f"{key}={value!r}"[:40] for key, value in arch_args.items()])
        raise InputError(
            f"{arch} can't be built{' with ' * bool(given)}{given} ({reason(error)}){_takes(make)}"
        ) from error


def _made(make: Callable[..., nn.Module], arch_args: Mapping[str, Any]) -> nn.Module:
    try:
        return make(**arch_args)
    except (NotImplementedError, RuntimeError):
        if torch.get_default_device().type != "meta":
            raise
        with _NumbersOnCPU():
            return make(**arch_args)


class _NumbersOnCPU(TorchFunctionMode):
    """Tables of numbers on the CPU, for builders that read widths off a tensor (RegNet), under the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.arange, torch.linspace, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _torchvision(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("torchvision classifier", name, known)
    # By default these draw truncated normals through scipy, which takes seconds.
    preset = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return lambda **given: models.get_model(name, weights=None, **{**preset, **given})


def _timm(name: str) -> Callable[..., nn.Module]:
    timm = _optional("timm")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):  # which also keeps out `hf-hub:…`, a download
        raise unknown("timm network", base, timm.list_models())
    if tag and name not in (tagged := timm.list_models(f"{base}.*", pretrained=True)):
        raise unknown("timm network", name, [base, *tagged])
    return lambda **given: timm.create_model(name, pretrained=False, **given)


def _robustbench(name: str) -> Callable[..., nn.Module]:
    tables = _robustbench_tables()
    known = {
        f"{dataset.value}/{threat.value}/{network}": entry["model"]
        for dataset, threats in tables.items()
        for threat, networks in threats.items()
        for network, entry in networks.items()
    }
    found = next((key for key in known if key == name or key.split("/")[-1] == name), None)
    if found is None:
        raise unknown("RobustBench network", name, [*dict.fromkeys(key.split("/")[-1] for key in known), *known])
    return known[found]


def _robustbench_tables() -> Mapping[Any, Any]:
    """RobustBench's tables alone, without its package's start-up.

    That imports pkg_resources, which setuptools no longer has, and what evaluates and downloads.
    """
    spec = importlib.util.find_spec("robustbench")
    if spec is None:
        raise _not_installed("robustbench")
    hollow = "robustbench" not in sys.modules
    if hollow:
        sys.modules["robustbench"] = importlib.util.module_from_spec(spec)
    try:
        return _optional("robustbench.model_zoo.models").model_dicts
    finally:
        if hollow:
            del sys.modules["robustbench"]  # so that somebody's own import gets the whole


def _optional(module: str) -> Any:
    package = module.split(".", maxsplit=1)[0]
    try:
        with quiet():
            return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise _not_installed(package) from None
        raise InputError(
            f"{package} is installed, but can't be imported ({reason(error)}); pip install -U 'coprobe[zoo]'"
        ) from error


def _not_installed(package: str) -> InputError:
    return InputError(f"{package} is not installed; pip install 'coprobe[zoo]'")


@contextmanager
def _offline(arch: str) -> Iterator[None]:
    """Refuse what builders of RobustBench's tables that ask for pretrained weights would fetch or find in a cache."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(f"{arch} is only built with downloaded weights; build it yourself and name it with --model")

    original = torch.hub.get_dir
    torch.hub.get_dir = refuse  # asked first, before a file is fetched or looked for
    try:
        yield
    finally:
        torch.hub.get_dir = original


def _takes(make: Callable[..., nn.Module]) -> str:
    """What a builder's network can be told, read off its class; empty where that can't be found out."""
    try:
        with torch.device("meta"), quiet():
            parameters = inspect.signature(type(_made(make, {})).__init__).parameters.values()
    except Exception:
        return ""
    names = [p.name for p in parameters if isinstance(p.default, bool | int | float | str)]
    return f"; it takes {some(names)}" if names else ""


def public_proposals(weights: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], nn.Module]]:
    """The torchvision classifiers that could have such weights: name, arguments of `public_network`, network on meta.

    They have as many weights, or a few more or fewer: the nearest first. Whether one fits is for `mismatches` to say;
    no two have equal names and shapes. What leaves no trace (`transform_input` of GoogLeNet and Inception, dropout) is
    not among the arguments.

    Args:
        weights: names to anything with a `shape`.
    """
    heads = (f"{head}.{part}" for head in _HEADS for part in ("weight", "bias"))
    head: Sequence[int] = next((weights[name].shape for name in heads if name in weights), ())
    begun = [start for start in _FAMILIES if any(name.startswith(start) for name in weights)]
    families = tuple(family for start in begun for family in _FAMILIES[start])
    count = sum(not name.endswith(COUNTER) for name in weights)
    near = [size for size in _BY_SIZE if abs(size - count) <= _NEAR] if head else []
    for size in sorted(near, key=lambda size: abs(size - count)):
        arch_args = {"num_classes": int(head[0]), **_vit_image_size(weights)}
        if size in _WITHOUT_AUXILIARY:
            arch_args["aux_logits"] = False
        for name in [name for name in _BY_SIZE[size].split() if name.startswith(families)]:
            arch = f"torchvision:{name}"
            try:
                with torch.device("meta"):
                    network = public_network(arch, **arch_args)
            except InputError:  # shapes of something else, which this one can't have
                continue
            yield arch, arch_args, network


def _vit_image_size(weights: Mapping[str, Any]) -> dict[str, int]:
    """The image side that a vision transformer's positions and patches speak of, unless it is the default."""
    try:
        positions = weights["encoder.pos_embedding"].shape[1] - 1  # one is the class token's
        patch = weights["conv_proj.weight"].shape[3]
    except (KeyError, IndexError):
        return {}
    side = math.isqrt(max(positions, 0)) * patch
    return {} if side == 224 else {"image_size": side}
