"""Checkpoints, ours and other people's: read, recognise, check, and write them.

Nothing in a file is ever executed: pickles go through torch's weights-only reader, and there is no other mode.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coprobe._version import __version__
from coprobe.errors import InputError
from coprobe.files import atomic
from coprobe.models import ARCHITECTURES, Classifier, build, defaults, infer, mismatches
from coprobe.provenance import digest_tensors

FORMAT = "coprobe/1"
#: Keys under which public code keeps its weights, and prefixes that its wrappers put before each name.
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


@dataclass
class Checkpoint:
    """A model and what is known about it.

    Attributes:
        model: images N×C×H×W in [0, 1] to logits, in evaluation mode on the CPU; normalisation is part of it.
        arch: name in `coprobe.models.ARCHITECTURES`.
        arch_args: arguments of the architecture (width, num_classes, in_channels, …).
        recipe: how it was trained, as in `recipe.json`; empty for other people's checkpoints.
        metrics: what was measured when it was saved (epoch, accuracies).
        image_shape: (channels, height, width) of the images it was trained on; None if unknown.
        path: the file it came from.
        container: kind of file (`zip`, `legacy pickle`, `safetensors`).
        layout: where in the file the weights were and which prefixes were removed, in words.
    """

    model: Classifier
    arch: str
    arch_args: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, int, int] | None = None
    path: Path | None = None
    container: str = ""
    layout: str = ""

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return int(self.arch_args["num_classes"])

    @property
    def in_channels(self) -> int:
        """Number of image channels."""
        return int(self.arch_args["in_channels"])

    @property
    def digest(self) -> str:
        """Digest of the weights, the same whatever file they are in."""
        return digest_tensors(self.model.network.state_dict())

    @property
    def stage(self) -> str:
        """Which of its run's checkpoints it is ("last epoch (30)"); empty where the file doesn't say."""
        selected, epoch = self.metrics.get("selected"), self.metrics.get("epoch")
        return f"{selected[:40]} ({epoch})" if isinstance(selected, str) and isinstance(epoch, int) else ""

    def check_fit(self, images: str, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        """Raise `InputError` unless the model can judge such images.

        Args:
            images: what they are called.
            num_classes: how many classes they have.
            image_shape: (channels, height, width).
        """
        channels, height, width = image_shape
        if num_classes != self.num_classes:
            raise InputError(
                f"{images} has {num_classes} classes and the model {self.num_classes} logits; "
                "choose the --data it was trained on"
            )
        if channels != self.in_channels:
            raise InputError(f"{images} has images of {channels} channels and the model takes {self.in_channels}")
        smallest = getattr(self.model.network, "min_image_size", 1)
        if min(height, width) < smallest:
            raise InputError(f"{images} has images of {height}×{width} pixels; {self.arch} needs at least {smallest}")
        if self.image_shape and self.image_shape[1:] != (height, width):
            trained = "×".join(map(str, self.image_shape[1:]))
            raise InputError(f"{images} has images of {height}×{width} pixels, but the model was trained on {trained}")

    def facts(self) -> dict[str, Any]:
        """What goes into the provenance of every result made with this checkpoint."""
        path = str(self.path) if self.path else None
        return {"checkpoint": path, "checkpoint_digest": self.digest, "stage": self.stage or None}

    def save(self, path: str | Path) -> None:
        """Write to `path`, atomically; `.safetensors` by suffix, else what `torch.load(weights_only=True)` reads."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.network.state_dict().items()}
        about = {
            "format": FORMAT,
            "coprobe": __version__,
            "arch": self.arch,
            "arch_args": self.arch_args,
            "preprocess": {"mean": self.model.mean, "std": self.model.std},
            "recipe": self.recipe,
            "metrics": self.metrics,
            "image_shape": self.image_shape,
        }
        with atomic(path) as temporary:
            if temporary.suffix == ".safetensors":
                from safetensors.torch import save

                # Not save_file: it makes files of mode 0600, whatever the umask.
                temporary.write_bytes(save(weights, {"coprobe": json.dumps(about)}))
                return
            with temporary.open("wb") as file:  # an open file, so that a full disk is an OSError that says so
                torch.save({**about, "state_dict": weights}, file)


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Checkpoint:
    """Read a checkpoint: ours, a bare state dict, or one under `state_dict`, `model`, `net` or `model_state_dict`.

    Args:
        path: the file, or a run directory (then its `checkpoint.pt`).
        arch: architecture; None takes what the file says, else what the names and shapes of its weights say.
        arch_args: overrides of single arguments of the architecture.
        mean: subtracted per channel; None takes what the file says, else nothing.
        std: divided by per channel; None takes what the file says, else nothing.

    Raises:
        InputError: no such file, no checkpoint, one that would have to execute code, an architecture that
            can't be told or doesn't fit, weights that are not finite. The message says what to do.
    """
    path = find_file(path)
    container, payload = _read(path)
    about, weights, layout = _unwrap(path, payload)
    arch, arch_args = _architecture(path, about, weights, arch, dict(arch_args or {}))
    network = _network(path, arch, arch_args, weights)
    assumed = [f"{name}={value!r}" for name, value in defaults(arch).items() if name not in arch_args]
    if assumed:
        layout += f", assumed {', '.join(assumed)}"
    try:
        model = Classifier(network, mean or about["preprocess"].get("mean"), std or about["preprocess"].get("std"))
    except (TypeError, ValueError) as error:  # what a file says may be anything
        raise InputError(f"{path}: {error}") from None
    return Checkpoint(
        model.eval(),
        arch,
        arch_args,
        recipe=about["recipe"],
        metrics=about["metrics"],
        image_shape=about["image_shape"],
        path=path,
        container=container,
        layout=layout,
    )


def find_file(path: str | Path) -> Path:
    """The checkpoint file that `path` means: itself, or `checkpoint.pt` of a run directory.

    Raises:
        InputError: there is no such regular, readable, non-empty file.
    """
    path = Path(path)
    try:
        if (path / "checkpoint.pt").is_file():
            path = path / "checkpoint.pt"
        mode = path.stat()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", error)
        raise InputError(f"{path}: {reason}; check the path") from None
    if stat.S_ISDIR(mode.st_mode):
        raise InputError(f"{path}: is a directory without a checkpoint.pt; name a checkpoint file")
    if not stat.S_ISREG(mode.st_mode):
        raise InputError(f"{path}: is no regular file; name a checkpoint file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    if mode.st_size == 0:
        raise InputError(f"{path}: is empty; copy or download it again")
    return path


def _read(path: Path) -> tuple[str, Any]:
    """The kind of container, by content, and what is in it."""
    with path.open("rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors", _read_safetensors(path)
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git LFS pointer, not the file itself; run 'git lfs pull'")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path}: is a web page, not a checkpoint; download the file itself")
    if head.startswith(b"PK\x03\x04"):
        return "zip", _read_pickle(path)
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "legacy pickle", _read_pickle(path)
    raise InputError(f"{path}: is no checkpoint (neither a torch nor a safetensors file); save a state_dict")


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and torch's own storages: nothing to act on
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damage through more than a dozen types
        raise InputError(f"{path}: {_why(error)}") from None


def _why(error: Exception) -> str:
    """Torch's refusal in our words; its own text advises the unsafe mode, which must never reach a person."""
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found:
        return f"holds more than weights ('{found.group(1)}' would have to be run); save model.state_dict() alone"
    if "TorchScript" in text:
        return "is a TorchScript archive; save model.state_dict() instead"
    if "data.pkl" in text or "not in a subdirectory" in text:
        return "is an archive, but no torch checkpoint; save model.state_dict()"
    return "is damaged, cut short or no plain state dict; copy it again, or save model.state_dict()"


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            # Copies, since the mapped file may be replaced while the model is in use.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = file.metadata() or {}
        about = json.loads(metadata.get("coprobe", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged safetensors file ({error}); copy or download it again") from None
    return {**(about if isinstance(about, dict) else {}), "state_dict": weights}


def _unwrap(path: Path, payload: Any) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """What the file says about itself, its weights by plain names, and the layout in words."""
    description: Mapping[str, Any] = {}
    layout = ["bare state dict"]
    if isinstance(payload, Mapping) and not _is_weights(payload):
        key = next((key for key in WRAPPERS if _is_weights(payload.get(key))), None)
        if key is None:
            held = ", ".join(f"{str(k)[:40]!r}" for k in list(payload)[:_SHOWN]) or "nothing"
            raise InputError(f"{path}: no weights under {', '.join(WRAPPERS)} (it holds {held}); save a state_dict")
        written = payload.get("format")
        if written != FORMAT and str(written).startswith("coprobe/"):
            raise InputError(f"{path}: has the format {str(written)[:40]} of a newer coprobe; upgrade coprobe")
        description = payload if written == FORMAT else {}
        layout = [FORMAT if description else f"state dict under '{key}'"]
        payload = payload[key]
    if not _is_weights(payload):
        raise InputError(f"{path}: holds a {type(payload).__name__}, not weights by name; save a state_dict")
    weights = dict(payload)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        layout.append(f"prefix '{prefix}' removed")
    return _described(path, description), weights, ", ".join(layout)


def _described(path: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """What one of our files says about itself, of the right types; empty values for what it does not say."""
    about: dict[str, Any] = {k: description.get(k) or {} for k in ("arch_args", "preprocess", "recipe", "metrics")}
    wrong = [key for key, value in about.items() if not isinstance(value, dict)]
    arch, shape = description.get("arch"), description.get("image_shape")
    if not isinstance(arch, str | None):
        wrong.append("arch")
    if shape is not None and not (isinstance(shape, list | tuple) and [type(n) for n in shape] == [int] * 3):
        wrong.append("image_shape")
    if wrong:
        raise InputError(f"{path}: damaged description ({', '.join(wrong)}); save it again, or its state_dict alone")
    return {**about, "arch": arch, "image_shape": tuple(shape) if shape else None}


def _is_weights(value: Any) -> bool:
    """Whether `value` is a non-empty mapping of text to tensors."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _network(path: Path, arch: str, arch_args: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The network with its weights in it, once they are known to fit and to be numbers."""
    try:
        with torch.device("meta"):  # takes no memory, whatever size the file or --arch-arg asks for
            differences = mismatches(build(arch, **arch_args), weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (RuntimeError, TypeError, OverflowError):
        raise InputError(f"{path}: no {arch} can have the arguments {arch_args}; give others") from None
    if differences:
        shown = ", ".join(differences[:_SHOWN]) + (", …" if len(differences) > _SHOWN else "")
        raise InputError(f"{path}: {len(differences)} weights don't fit {arch} ({shown}); name another --arch")
    for name, tensor in weights.items():
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
            raise InputError(
                f"{path}: weight '{name[:80]}' is no plain tensor of real numbers; save a dense state_dict"
            )
        if not torch.isfinite(tensor.float()).all():
            raise InputError(f"{path}: weight '{name[:80]}' is not finite (NaN or infinite); the training diverged")
    network = build(arch, **arch_args)
    network.load_state_dict(weights, strict=False)  # strictness is `mismatches`, which forgives old BN counters
    return network


def _architecture(
    path: Path, about: Mapping[str, Any], weights: Mapping[str, Tensor], arch: str | None, given: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the architecture: what the person says, else the file, else the weights."""
    if arch is None and about["arch"]:
        return about["arch"], {**about["arch_args"], **given}
    try:
        if arch is None:
            arch, read = infer(weights)
        else:
            read = _read_args(arch, ARCHITECTURES[arch].read_args, weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return arch, {**read, **given}


def _read_args(
    arch: str, read_args: Callable[[Mapping[str, Tensor]], dict[str, Any]], weights: Mapping[str, Tensor]
) -> dict[str, Any]:
    try:
        return read_args(weights)
    except (KeyError, IndexError) as error:
        raise InputError(f"no {arch}: weight {error} is missing or misshapen; name another --arch") from None


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
