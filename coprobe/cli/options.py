"""Options that several commands share, and what they become: a checkpoint, a probe."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from coprobe.cli import memory, output
from coprobe.cli.sharing import share
from coprobe.core.defaults import EPS, EPS_L2, PROBING_ATTACK
from coprobe.errors import InputError

if TYPE_CHECKING:
    import torch

    from coprobe.checkpoint import Checkpoint
    from coprobe.checkpoint.misfit import Row
    from coprobe.core.processes import Processes
    from coprobe.data import Dataset
    from coprobe.paper import Results
    from coprobe.probe import Probe

F = TypeVar("F", bound=Callable[..., Any])
#: Seconds after which what an interrupted command left is of no use any more.
_FORGOTTEN = 30 * 24 * 3600
#: Names of weights in a message about many.
_SHOWN = 3


class Budget(click.ParamType):
    """A budget in 255ths: `16` and `16/255` both mean 16/255; a bare number between 0 and 1 is asked back.

    With `--norm l2` a number means itself, a length, and is 255 of 255ths.
    """

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if ctx and ctx.params.get("norm") == "l2":
            return self._length(str(value), param.opts[0] if param else "budget")
        flag = param.opts[0] if param else "budget"
        text, slash, denominator = str(value).partition("/")
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if (slash and denominator != "255") or not 0 <= number <= 255:
            raise InputError(f"{flag} {value}: write n for n/255, a number between 0 and 255")
        if 0 < number < 1 and not slash:
            raise InputError(f"{flag} {value}: budgets are n of n/255; write {number * 255:g} or {value}/255")
        return number

    def _length(self, value: str, flag: str) -> float:
        text, slash, denominator = value.partition("/")
        try:
            number = float(text) * (1 if slash else 255)
        except ValueError:
            number = -1.0
        if (slash and denominator != "255") or not 0 <= number < math.inf:
            raise InputError(f"{flag} {value}: write an L2 length of images in [0, 1], as in 0.5 or 128/255")
        return number


class Number(click.FloatRange):
    """A number in a range; NaN, which click takes for one in any range, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class Limit(click.ParamType):
    """A number of images, at least 1, or `all`."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or isinstance(value, int):
            return value
        if str(value).lower() == "all":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            flag = param.opts[0] if param else "limit"
            raise InputError(f"{flag} {value}: must be a whole number of at least 1, or all")
        return int(value)


class Assignment(click.ParamType):
    """`key=value`; whole numbers, decimals and true/false become what they look like."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            raise InputError(f"'{value}': write key=value")
        words = {"true": True, "false": False}
        for read in (words.__getitem__, int, float):
            try:
                return key, read(text)
            except (KeyError, ValueError):
                continue
        return key, text


def comma_separated(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """A callback that splits `a,b` and refuses an empty list."""
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise InputError(f"{param.opts[0]}: name at least one, separated by commas")
    return names


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A callback that reads `0.49,0.48,0.45`."""
    if value is None:
        return None
    try:
        return tuple(float(number) for number in value.split(","))
    except ValueError:
        raise InputError(f"{param.opts[0]} {value}: write numbers separated by commas, one per channel") from None


def channel_axis(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> int | Mapping[str, int] | None:
    """A callback that reads `3`, which is for all nodes, or every `NODE=AXIS`."""
    axes: dict[str, int] = {}
    for text in value:
        node, equals, number = text.rpartition("=")
        if not number.removeprefix("-").isdecimal() or (bool(equals) != bool(node)) or (len(value) > 1 and not node):
            raise InputError(
                f"--channel-axis {text}: write NODE=AXIS for each node, or one AXIS for all, as in A=3 or 3"
            )
        axes[node] = int(number)
    return axes.get("", axes) if axes else None


def _stack(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


reading_options = _stack(
    click.option(
        "--arch",
        help="Architecture, where the file doesn't say and its weights can't tell; also torchvision:NAME, timm:NAME, "
        "robustbench:NAME. This and the options below hold for every file that is named.",
    ),
    click.option("--arch-arg", "arch_args", type=Assignment(), multiple=True, help="Argument of the architecture."),
    click.option(
        "--model",
        help="Your own code that makes the network: package.module:factory or FILE.py:factory. It is run. "
        "CHECKPOINT - then means the weights that the factory gives it.",
    ),
    click.option("--model-arg", "model_args", type=Assignment(), multiple=True, help="Argument of the factory."),
    click.option("--pick", metavar="KEY", help="Which network, in a file with several."),
    click.option(
        "--allow-missing", multiple=True, metavar="PATTERN",
        help="Weights that the file may lack (*.num_batches_tracked); recorded in every result. Repeatable.",
    ),
    click.option(
        "--allow-unexpected", multiple=True, metavar="PATTERN",
        help="Weights of the file to leave out (fc2.*); recorded in every result. Repeatable.",
    ),
    click.option("--mean", callback=numbers, help="Mean per channel that the model expects to be subtracted."),
    click.option("--std", callback=numbers, help="Standard deviation per channel."),
    click.option(
        "--channel-axis", multiple=True, callback=channel_axis, metavar="[NODE=]AXIS",
        help="Which axis of the activations (0 is the batch) holds the channels, where that can't be told. Repeatable.",
    ),
)  # fmt: skip

device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
skip_bad_option = click.option(
    "--skip-bad",
    is_flag=True,
    help="Leave out images that can't be read, or that the model gives no finite logits for, and say which.",
)

image_size_option = click.option(
    "--image-size",
    metavar="SIZE",
    help="Resize images and crop them at the centre: N, HxW, or N:SHORTER[:bicubic] to say how many pixels the shorter "
    "side has before the crop. torchvision's models mostly want 224:256, timm's 224:256:bicubic.",
)

probing_options = _stack(
    reading_options,
    click.option("--data", help="NAME, folder:DIR or parquet:DIR. Default: what the checkpoint was trained on."),
    click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True),
    click.option("--limit", type=Limit(), default=1000, show_default=True, help="Class-balanced images."),
    skip_bad_option,
    image_size_option,
    click.option(
        "--eps",
        type=Budget(),
        help="Attack radius: n of n/255, or with --norm l2 a length of images in [0, 1], as in 0.5.  [default: what "
        f"the checkpoint was trained at, or {EPS:g} if it doesn't say; l2: {EPS_L2:g}]",
    ),
    click.option(
        "--norm",
        type=click.Choice(["linf", "l2"]),
        default="linf",
        show_default=True,
        is_eager=True,
        help="Of the attacks.",
    ),
    click.option("--batch-size", type=click.IntRange(1), help="Images at once. Default: found by itself."),
    device_option,
    click.option(
        "--devices",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Share the images among so many; the result is the same.",
    ),
    click.option("--precision", default="32", show_default=True, help="32 (float32), tf32 (CUDA only) or bf16."),
    click.option("--compile", "compiled", is_flag=True, help="Run the passes of long attacks through torch.compile."),
    click.option(
        "--plain",
        is_flag=True,
        help="Without anything that is there for speed: the model as it is, every image through every step, images "
        "decoded anew.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
)

paper_options = _stack(
    click.option("--scale", default="demo", show_default=True, help="demo, small or paper."),
    click.option("--runs", type=click.Path(path_type=Path), help="Directory of the runs.  [default: runs/paper/SCALE]"),
    click.option("--cifar10", help="Where CIFAR-10 is, as in --data of 'coprobe train'."),
    click.option("--cifar100", help="Where CIFAR-100 is; without it, only --scale paper has its runs."),
    click.option("--seeds", type=click.IntRange(1), help="Trainings of every run.  [default: the scale's]"),
)

attack_option = click.option(
    "--attack",
    default=PROBING_ATTACK,
    show_default=True,
    help="The attack behind T_act, as in --attacks of 'coprobe evaluate'.",
)


def debug_option(function: F) -> F:
    """`--debug`, which `main` reads: errors with their traceback."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(function)


@dataclass(frozen=True)
class ReadingOptions:
    """What the options of `reading_options` were given as."""

    arch: str | None
    arch_args: tuple[tuple[str, Any], ...]
    model: str | None
    model_args: tuple[tuple[str, Any], ...]
    pick: str | None
    allow_missing: tuple[str, ...]
    allow_unexpected: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    channel_axis: int | Mapping[str, int] | None

    def read(
        self, path: str | Path, *, image_shape: tuple[int, int, int] | None = None, as_stored: bool = False
    ) -> Checkpoint:
        """Load the checkpoint at `path`; `-` stands for the weights that the factory of --model gives its network.

        With `as_stored`, weights keep the floating-point types of the file, to be looked at only.
        """
        from coprobe.checkpoint import load

        checkpoint = load(
            path,
            arch=self.arch,
            arch_args=dict(self.arch_args),
            mean=self.mean,
            std=self.std,
            model=self.model,
            model_args=dict(self.model_args),
            pick=self.pick,
            allow_missing=self.allow_missing,
            allow_unexpected=self.allow_unexpected,
            channel_axis=self.channel_axis,
            image_shape=image_shape,
            as_stored=as_stored,
        )
        for kind, names in checkpoint.allowed_mismatch.items():
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            output.message(f"{path}: {len(names)} weights are {kind}, as allowed: {shown}")
        return checkpoint

    def compare(self, path: str | Path) -> tuple[list[Row], str]:
        """All weights of the file at `path` beside those of the network, and why they don't fit, empty if they do."""
        from coprobe.checkpoint.comparison import compare_weights

        return compare_weights(
            path,
            arch=self.arch,
            arch_args=dict(self.arch_args),
            model=self.model,
            model_args=dict(self.model_args),
            pick=self.pick,
            allow_missing=self.allow_missing,
            allow_unexpected=self.allow_unexpected,
        )

    def read_for(self, path: str | Path, images: Callable[[], Dataset]) -> tuple[Checkpoint, Dataset]:
        """Load the checkpoint at `path` and images for it, which come first where their size may be the network's."""
        from coprobe.checkpoint import find_file

        if self.model is None and ":" not in (self.arch or ""):
            return self.read(path), images()
        if str(path) != "-":
            find_file(path)
        dataset = images()
        return self.read(path, image_shape=dataset.image_shape), dataset


@dataclass(frozen=True)
class ProbingOptions(ReadingOptions):
    """What the options of `probing_options` were given as."""

    data: str | None
    split: str
    limit: int | None
    skip_bad: bool
    image_size: str | None
    eps: float | None
    norm: str
    batch_size: int | None
    device: str
    devices: int
    precision: str
    compiled: bool
    plain: bool
    seed: int

    def probe(self, path: str | Path, *, cache: bool = False, warns: bool = True) -> Probe:
        """Load the checkpoint and its images; remembered as the checkpoint probed last.

        Args:
            path: see `read`.
            cache: keep results in `stats/` of the run directory that `path` is.
            warns: say at once what makes results doubtful.
        """
        from coprobe.core.engine import choose_device
        from coprobe.fast.classifier import check_precision

        device = choose_device(self.device)
        check_precision(self.precision, device)
        processes, device = share(self.devices, device)
        from coprobe.probe import Probe  # which a process that starts others does not need

        checkpoint, dataset = self._read_both(path)
        checkpoint = self.fitted(path, checkpoint, dataset, device, processes)
        if self.skip_bad:
            dataset = self._usable(checkpoint, dataset, device)
        probe = Probe(
            checkpoint,
            dataset,
            epsilon=None if self.eps is None else self.eps / 255,
            norm=self.norm,
            device=device,
            batch_size=self.batch_size,
            precision=self.precision,
            seed=self.seed,
            cache=Path(path) / "stats" if cache and Path(path).is_dir() else None,
            unfinished=_unfinished(),
            plain=self.plain,
            compiled=self.compiled,
            processes=processes,
            progress=output.progress,
            say=lambda text: output.message(f"{path}: {text}"),
        )
        if processes.leads:
            if warns:
                probe.warn(probe.findings.sentences)
            if checkpoint.path:
                memory.remember(checkpoint.path)
        return probe

    def _read_both(self, path: str | Path) -> tuple[Checkpoint, Dataset]:
        """The checkpoint and its images: those that are named, else those that it was trained on."""
        if self.data:
            return self.read_for(path, partial(self._images, self.data))
        checkpoint = self.read(path)
        if not (data := checkpoint.recipe.get("data")):
            raise InputError(f"{path} does not say what it was trained on; pass --data (cifar10, parquet:DIR, …)")
        return checkpoint, self._images(str(data))

    def _usable(self, checkpoint: Checkpoint, dataset: Dataset, device: torch.device) -> Dataset:
        from coprobe.checkpoint.unusable import without_unusable

        usable = without_unusable(checkpoint, dataset, device=device, batch_size=self.batch_size)
        for note in usable.notes[len(dataset.notes) :]:
            output.message(note)
        return usable

    def _images(self, spec: str) -> Dataset:
        return read_images(
            spec,
            self.split,
            limit=self.limit,
            skip_bad=self.skip_bad,
            cache=not self.plain,
            image_size=self.image_size,
        )

    def fitted(
        self,
        path: str | Path,
        checkpoint: Checkpoint,
        dataset: Dataset,
        device: torch.device | str,
        processes: Processes,
    ) -> Checkpoint:
        """The checkpoint with what clean images decide where its file leaves it open, which is said."""
        from coprobe.checkpoint.fitting import Decision, fit

        images, _ = checkpoint.suited(dataset)
        checkpoint.check_fit(f"{images.name} ({images.split})", images.num_classes, images.image_shape)
        decision = Decision()
        if processes.leads:
            how: dict[str, Any] = {"device": device, "batch_size": self.batch_size, "progress": output.progress}
            decision = fit(checkpoint, images, **how)
            for sentence in (*checkpoint.doubts, *decision.sentences):
                output.message(f"{path}: {sentence}")
        return processes.broadcast(decision).of(checkpoint)


@dataclass(frozen=True)
class PaperOptions:
    """What the options of `paper_options` were given as."""

    scale: str
    runs: Path | None
    cifar10: str | None
    cifar100: str | None
    seeds: int | None

    def results(self, weights: Path | None = None) -> Results:
        """The results in the directory of the runs; raises `InputError` if they are of another scale.

        Args:
            weights: where runs are trained, if not there.
        """
        from coprobe.paper import Results, scale_of

        scale = scale_of(self.scale)
        data = {"cifar10": self.cifar10, "cifar100": self.cifar100}
        given = {name: spec for name, spec in data.items() if spec}
        return Results(self.runs or scale.directory, scale, given, self.seeds, weights)


def _unfinished() -> Path | None:
    """Where finished attacks wait for those that are still to be run: in `$COPROBE_CACHE`; None if that can't be.

    What was left there more than a month ago is removed.
    """
    from coprobe.core.files import check_writable_directory

    directory = Path(os.environ.get("COPROBE_CACHE") or "~/.cache/coprobe").expanduser() / "unfinished"
    try:
        check_writable_directory(directory)
        for file in directory.glob("part-*"):
            if time.time() - file.stat().st_mtime > _FORGOTTEN:
                file.unlink()
    except (InputError, OSError):
        return None
    return directory


def read_images(
    spec: str,
    split: str = "test",
    *,
    limit: int | None,
    skip_bad: bool,
    cache: bool = True,
    image_size: str | None = None,
) -> Dataset:
    """Load a data set as `coprobe.data.load` does, and say what a person should know of how it was read."""
    from coprobe.data import load

    dataset = load(spec, split, limit=limit, skip_bad=skip_bad, cache=cache, image_size=image_size)
    for note in dataset.notes:
        output.message(note)
    return dataset
