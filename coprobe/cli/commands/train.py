"""`coprobe train`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from coprobe.cli.options import Assignment, Budget, Limit, Number, debug_option
from coprobe.cli.output import Output, json_option, message, percent, plot_option, print_table, progress


@click.command(short_help="Train a checkpoint.")
@click.option("--out", "directory", type=click.Path(path_type=Path), required=True, help="Run directory to make.")
@click.option("--method", default="fgsm", show_default=True, help="clean, fgsm, fgsm-rs, fgsm-mep, …")
@click.option("--option", "options", type=Assignment(), multiple=True, help="The method's own option; repeatable.")
@click.option("--data", default="cifar10", show_default=True, help="NAME, folder:DIR or parquet:DIR.")
@click.option("--limit-train", type=Limit(), help="Class-balanced training images.  [default: all]")
@click.option("--held-out", type=int, default=1000, show_default=True, help="Training images kept for accuracies.")
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--width", type=click.IntRange(1), help="Channels of the first stage.  [default: the architecture's]")
@click.option("--eps-train", type=Budget(), default=8.0, show_default=True, help="Training radius, n of n/255.")
@click.option("--eps-eval", type=Budget(), help="Radius of the per-epoch attacks.  [default: eps-train]")
@click.option("--step-size", type=Budget(), help="Attack step, n of n/255.  [default: the method's]")
@click.option("--epochs", type=int, default=30, show_default=True)
@click.option("--batch-size", type=int, default=128, show_default=True)
@click.option("--lr", type=float, default=0.1, show_default=True, help="Peak learning rate.")
@click.option("--schedule", default="one-cycle", show_default=True, help="constant, step or one-cycle.")
@click.option("--momentum", type=float, default=0.9, show_default=True)
@click.option("--weight-decay", type=float, default=5e-4, show_default=True)
@click.option("--augment", default="crop-flip", show_default=True, help="none, crop or crop-flip.")
@click.option("--stable-node", help="Node of L_stable (Eq. 8).")
@click.option("--stable-weight", type=float, default=0.0, help="alpha_3 of L_stable; 200 in the paper.")
@click.option(
    "--logit-weight",
    type=Number("a finite number, at least 0", lambda number: 0 <= number < math.inf),
    help="Factor of the logit term (Eq. 10).  [default: the method's]",
)
@click.option("--stop-at-collapse", is_flag=True, help="End after an epoch with PGD-10 ≤ 2 % and FGSM 40 points above.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there already.")
@json_option
@plot_option
@debug_option
def command(
    directory: Path,
    options: tuple[tuple[str, Any], ...],
    device: str,
    overwrite: bool,
    as_json: bool,
    plot: Any,
    **knobs: Any,
) -> None:
    """Train a checkpoint; the run directory gets recipe.json, history.csv, checkpoint.pt and best.pt.

    Accuracies of each epoch are measured on held-out training images, never on the test set.

    \b
    Example:
      coprobe train --method fgsm --eps-train 16 --data cifar10 --width 16 \\
        --limit-train 10000 --epochs 10 --out runs/co
    """
    from coprobe.checkpoint import load as load_checkpoint
    from coprobe.data import load
    from coprobe.engine import choose_device
    from coprobe.files import check_writable_directory
    from coprobe.training import Recipe, train

    output = Output(as_json, None, plot)
    recipe = Recipe(options=dict(options), **knobs)
    chosen = choose_device(device)
    check_writable_directory(directory)
    data = load(recipe.data, "train")
    images = recipe.limit_train or max(1, len(data) - recipe.held_out)
    with progress(f"{recipe.method}, {recipe.epochs} epochs", images * recipe.epochs) as advance:
        run = train(
            recipe, directory, device=chosen, data=data, overwrite=overwrite, on_batch=advance, on_epoch=_report(recipe)
        )
    history = run.history
    made = json.loads((directory / "recipe.json").read_text(encoding="utf-8"))["provenance"]
    history.attrs.update({**made, **load_checkpoint(run.checkpoint).facts()})

    def show() -> None:
        rows = [
            [
                str(row["epoch"]),
                f"{row['train_loss']:.3f}",
                *map(percent, (row["train_accuracy"], row["clean"], row["fgsm"], row["pgd10"])),
            ]
            for row in history.tail(5).to_dict("records")
        ]
        header = ["epoch", "loss", "train %", "clean %", "FGSM %", "PGD-10 %"]
        print_table(f"{directory}: the last epochs", header, rows, f"held-out images: {recipe.held_out}")

    def draw() -> Any:
        from coprobe.figures import fig01

        return fig01.draw(history.assign(run=directory.name))

    output.give(history, show, draw, run=str(directory), recipe=recipe.to_dict())


def _report(recipe: Any) -> Any:
    def report(row: dict[str, Any]) -> None:
        message(
            f"epoch {row['epoch']:>3}/{recipe.epochs}  loss {row['train_loss']:.3f}  clean {percent(row['clean'])}"
            f"  FGSM {percent(row['fgsm'])}  PGD-10 {percent(row['pgd10'])}  {row['seconds']:.1f} s"
        )

    return report
