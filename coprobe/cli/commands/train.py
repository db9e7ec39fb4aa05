"""`coprobe train`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup
from click.core import ParameterSource

from coprobe.cli.options import Assignment, Budget, Limit, Number, debug_option, read_images
from coprobe.cli.output import Output, json_option, message, percent, plot_option, print_table, progress
from coprobe.cli.sharing import share
from coprobe.core.text import storable
from coprobe.errors import InputError, unknown
from coprobe.training.recipe import PRESETS, Recipe, flag

if TYPE_CHECKING:
    from coprobe.training import Run, TrainingCallback

#: What click reads for a knob of each annotation; choices and ranges are the recipe's to check, for JSON as well.
_TYPES: dict[str, Any] = {
    "str": str,
    "str | None": str,
    "int": int,
    "int | None": int,
    "float": float,
    "float | None": float,
    "tuple[int, ...] | None": str,
}


def _option(knob: dataclasses.Field[Any]) -> Any:
    """The command-line option of a knob of the recipe."""
    rules = knob.metadata
    choices = ", ".join(rules.get("choices", ()))
    about = f"{rules['help']} {choices}{'.' if choices else ''}".strip()
    names = flag(knob.name)
    settings: dict[str, Any] = {}
    if knob.name == "options":
        settings = {"type": Assignment(), "multiple": True}
    elif knob.type == "bool":
        names += f"/{flag('no_' + knob.name)}"
    elif rules.get("in_255ths"):
        settings = {"type": Budget()}
    elif knob.name == "limit_train":
        settings = {"type": Limit()}
    else:
        settings = {"type": _TYPES[str(knob.type)]}
    if knob.type == "bool":
        about += f"  [default: {'on' if knob.default else 'off'}]"
    elif knob.default not in (None, dataclasses.MISSING):
        shown = f"{knob.default:g}" if isinstance(knob.default, float) else knob.default
        about += f"  [default: {shown}]"
    return cloup.option(names, knob.name, help=about, default=None, **settings)


def _knobs(function: Any) -> Any:
    """An option per knob of the recipe, under the headings of their groups."""
    groups: dict[str, list[Any]] = {}
    for knob in dataclasses.fields(Recipe):
        groups.setdefault(knob.metadata["group"], []).append(_option(knob))
    for title, options in reversed(groups.items()):
        function = cloup.option_group(title, *options)(function)
    return function


@cloup.command()
@cloup.option_group(
    "Run",
    cloup.option("--out", "directory", type=click.Path(path_type=Path), required=True, help="Run directory."),
    cloup.option("--preset", help=f"Knobs to begin with: {', '.join(PRESETS)}."),
    cloup.option("--recipe", "file", type=click.Path(path_type=Path), help="JSON file with knobs."),
    cloup.option("--resume", is_flag=True, help="Go on with an interrupted run."),
    cloup.option("--overwrite", is_flag=True, help="Replace a run that is there already."),
    cloup.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps."),
    cloup.option(
        "--devices", type=click.IntRange(1), default=1, show_default=True, help="Train data-parallel on so many."
    ),
    cloup.option("--compile/--no-compile", "compiled", default=False, help="Run through torch.compile."),
    cloup.option(
        "--save-minutes",
        type=Number(0, min_open=True),
        default=10.0,
        show_default=True,
        help="Longest time between two saves of the state.",
    ),
    cloup.option("--skip-bad", is_flag=True, help="Leave out images that can't be read, and say which."),
    cloup.option("--tensorboard", is_flag=True, help="Write events for TensorBoard as well."),
)
@_knobs
@json_option
@plot_option
@debug_option
@click.pass_context
def command(
    context: click.Context,
    /,
    directory: Path,
    preset: str | None,
    file: Path | None,
    resume: bool,
    overwrite: bool,
    device: str,
    devices: int,
    compiled: bool,
    save_minutes: float,
    skip_bad: bool,
    tensorboard: bool,
    as_json: bool,
    plot: Any,
    **knobs: Any,
) -> None:
    """Train a checkpoint; the run directory gets recipe.json, history.csv, checkpoint.pt (last) and best.pt.

    Accuracies of each epoch are measured on held-out training images, never on the test set unless asked
    (--watch test). A run that was killed goes on with --resume; what it was trained with need not be repeated.

    \b
    Examples:
      coprobe train --method fgsm --eps-train 16 --data cifar10 --width 16 \\
        --limit-train 10000 --epochs 10 --out runs/co
      coprobe train --resume --out runs/co
      coprobe train --preset paper --method fgsm-mep --eps-train 12 --logit-weight 0 \\
        --stable-node B --stable-weight 200 --device cuda --precision bf16 --out runs/fd12
    """
    from coprobe.core.engine import choose_device
    from coprobe.core.files import check_writable_directory
    from coprobe.training import Run, make_method, train

    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other; leave one out")
    output = Output(as_json, None, plot)
    given = {key: knobs[key] for key in knobs if context.get_parameter_source(key) is ParameterSource.COMMANDLINE}
    run = Run(check_writable_directory(directory))
    recipe = _recipe(run if resume else None, preset, file, given)
    processes, chosen = share(devices, choose_device(device), "pass --resume to go on")
    data = read_images(recipe.data, "train", limit=None, skip_bad=skip_bad)
    images = recipe.limit_train or max(1, len(data) - recipe.images_held_out(len(data)))
    images *= make_method(recipe.method, recipe.options, epsilon=recipe.eps_train / 255).updates_per_batch
    events = _events(directory) if tensorboard and processes.leads else None
    shown = progress(f"{recipe.method}, {recipe.epochs} epochs", images * recipe.epochs)
    bar = shown if processes.leads else nullcontext(lambda *_: None)
    held = _held(directory) if processes.leads else nullcontext()
    with bar as advance, held:
        run = train(
            recipe,
            directory,
            device=chosen,
            processes=processes,
            data=data,
            skip_bad=skip_bad,
            overwrite=overwrite,
            resume=resume,
            save_minutes=save_minutes,
            compiled=compiled,
            callback=_callback(recipe, advance, events) if processes.leads else None,
        )
    if processes.leads:
        _tell(output, run, recipe)


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """The run directory, which no other process may work in; if nothing comes of it, nothing of it is left."""
    from coprobe.core.files import exclusive

    made = [place for place in (directory, *directory.parents) if not place.exists()]
    try:
        with exclusive(directory, wait=False):
            yield
    finally:
        for place in made:
            with suppress(OSError):  # not empty
                place.rmdir()


def _recipe(run: Run | None, preset: str | None, file: Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe: of the run to resume, else the defaults; over it the preset, the file and then the options."""
    if given.get("milestones") is not None:
        try:
            given["milestones"] = tuple(int(epoch) for epoch in given["milestones"].split(","))
        except ValueError:
            raise InputError(f"--milestones {given['milestones']}: write epochs separated by commas") from None
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    begun = run is not None and run.begun
    if run is not None and not (begun or given or preset or file):
        raise InputError(f"{run.directory}: holds no run to resume; name another --out, or give a new run its knobs")
    knobs = {
        **(run.recipe.to_dict() if run is not None and begun else {}),
        **PRESETS.get(preset or "", {}),
        **_read(file),
    }
    if "options" in given:
        given["options"] = {**knobs.get("options", {}), **dict(given["options"])}
    return Recipe.from_dict({**knobs, **given})


def _read(file: Path | None) -> dict[str, Any]:
    """The knobs in a JSON file; a run's own recipe.json will do."""
    if file is None:
        return {}
    try:
        knobs = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"is no JSON ({error})"
        raise InputError(f"{file}: {reason}; name a JSON file with knobs, like a run's recipe.json") from None
    if not isinstance(knobs, dict):
        raise InputError(f"{file}: holds no knobs by name; name a JSON file like a run's recipe.json")
    return {key: value for key, value in knobs.items() if key not in ("provenance", "outcome")}


def _events(directory: Path) -> Callable[[dict[str, Any]], None]:
    """Writes each row of the history for TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs TensorBoard; run 'pip install coprobe[tensorboard]'") from None
    writer: SummaryWriter | None = None

    def write(row: dict[str, Any]) -> None:
        nonlocal writer
        if writer is None:  # it makes its directory at once, and hides what an earlier run wrote from this epoch on
            writer = SummaryWriter(str(directory / "events"), purge_step=row["epoch"])
        for column, value in row.items():
            if column != "epoch":
                writer.add_scalar(column, value, row["epoch"])
        writer.flush()

    return write


def _callback(
    recipe: Recipe, advance: Callable[..., None], events: Callable[[dict[str, Any]], None] | None
) -> TrainingCallback:
    from coprobe.training import TrainingCallback

    def on_epoch(row: dict[str, Any]) -> None:
        accuracies = f"clean {percent(row['clean'])}  FGSM {percent(row['fgsm'])}  PGD-10 {percent(row['pgd10'])}"
        message(
            f"epoch {row['epoch']:>3}/{recipe.epochs}  loss {row['train_loss']:.3f}  {accuracies}"
            f"  {row['seconds']:.1f} s"
        )
        advance(0, f"epoch {min(row['epoch'] + 1, recipe.epochs)}/{recipe.epochs}  {accuracies}")
        if events:
            events(row)

    return TrainingCallback(advance, on_epoch, message)


def _tell(output: Output, run: Run, recipe: Recipe) -> None:
    """The end of a run: its last epochs as a table, its history in full where that was asked for."""
    from coprobe.checkpoint import load as load_checkpoint
    from coprobe.figures import fig01

    history = run.history
    about = run.about()
    outcome = about["outcome"]
    history.attrs.update({**about["provenance"], **load_checkpoint(run.checkpoint).facts()})
    if output.for_people:
        rows = [
            [
                str(row["epoch"]),
                f"{row['train_loss']:.3f}",
                *map(percent, (row["train_accuracy"], row["clean"], row["fgsm"], row["pgd10"])),
            ]
            for row in history.tail(5).to_dict("records")
        ]
        header = ["epoch", "loss", "train %", "clean %", "FGSM %", "PGD-10 %"]
        print_table(f"{run.directory}: the last epochs", header, rows, _note(about["provenance"], outcome))
    drawn = history.assign(run=storable(run.directory.name))
    output.write(history, lambda: fig01.draw(drawn), run=str(run.directory), recipe=recipe.to_dict(), outcome=outcome)


def _note(made: dict[str, Any], outcome: dict[str, Any]) -> str:
    collapse = outcome["collapse_epoch"]
    said = [f"on {made['watched']}; ended by {outcome['ended_by']}"]
    if collapse is not None:
        said.append(f"catastrophic overfitting in epoch {collapse}")
    elif outcome["ended_by"] != "--stop-at-collapse":
        said.append("no collapse")
    said.append(f"checkpoint.pt is of epoch {outcome['epochs']}, best.pt (PGD-10) of epoch {outcome['best_epoch']}")
    if not outcome["converged"]:
        said.append("did not converge: no result")
    return "; ".join(said)
