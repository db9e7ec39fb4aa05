"""`coprobe demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from coprobe.cli.options import debug_option
from coprobe.cli.output import message, percent, print_table, print_text, progress
from coprobe.core.defaults import ATTACKS


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("coprobe-demo"), show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the story.")
@debug_option
def command(out: Path, seed: int, device: str, as_json: bool) -> None:
    """Train a CO-affected and a stable model on scikit-learn's digits, probe and mask both, draw the figures.

    No download, no GPU; two minutes on a core of a Zen 4 processor, four to six on an older EPYC (AVX2 only).

    \b
    Example:
      coprobe demo --out coprobe-demo
    """
    from coprobe import demo
    from coprobe.cli import memory
    from coprobe.core.engine import choose_device
    from coprobe.core.files import check_writable_directory

    check_writable_directory(out)
    chosen = choose_device(device)
    demo.refuse_others(out)
    message(
        f"Two ResNet-18 of width {demo.COLLAPSING.width} on handwritten digits, trained with FGSM at "
        f"{demo.COLLAPSING.eps_train:g}/255: 'co' as it is, until it collapses, and 'stable' with L_stable at node B."
    )

    def report(name: str, row: dict[str, Any]) -> None:
        epoch = f"{row['epoch']:>2}/{demo.RECIPES[name][1].epochs}"
        message(
            f"{name:>6}  epoch {epoch}  clean {percent(row['clean']):>5}  FGSM {percent(row['fgsm']):>5}"
            f"  PGD-10 {percent(row['pgd10']):>5}  {row['seconds']:.1f} s"
        )

    story = demo.run(out, seed=seed, device=chosen, progress=progress, on_epoch=report)
    memory.remember(out / "co" / "checkpoint.pt")
    if as_json:
        click.echo(json.dumps(_facts(story), indent=2, allow_nan=False))
        return
    _tell(story)
    click.echo(f"Figures 1, 3 and 4: {story.figures[0].parent}/fig01.png, fig03.png, fig04.png")
    click.echo("Next: coprobe mask --alpha2 0.5   (masks the model that was probed last)")


def _facts(story: Any) -> dict[str, Any]:
    from coprobe.core.files import records

    return {
        "runs": {
            name: {
                "verdict": diagnosis.verdict,
                "sentence": diagnosis.sentence,
                "salient": diagnosis.salient,
                "accuracy": records(diagnosis.evaluation.frame),
                "masked": records(story.maskings[name].evaluation.over_draws()),
            }
            for name, diagnosis in story.diagnoses.items()
        },
        "figures": [str(path) for path in story.figures],
    }


def _tell(story: Any) -> None:
    attacks = ["clean", *ATTACKS]
    accuracies = {name: [d.evaluation.accuracy(attack) for attack in attacks] for name, d in story.diagnoses.items()}
    rows = [[name, *map(percent, values), story.diagnoses[name].verdict] for name, values in accuracies.items()]
    n = int(story.diagnoses["co"].evaluation.frame["n"].iloc[0])
    print_table(
        f"1. FGSM looks fine, PGD tells (accuracy in %, n = {n})", ["", "clean", "FGSM", "PGD-10", "verdict"], rows
    )

    rows = []
    for name, diagnosis in story.diagnoses.items():
        table = diagnosis.statistics.table()
        top = table[table["node"] == "A"].head(4)
        rows.append([name, *(f"{k}: {t:.2f}" for k, t in zip(top["channel"], top["t_act"], strict=True))])
    print_table("2. Which channels jump: T_act at node A, the largest four", ["", "1st", "2nd", "3rd", "4th"], rows)

    rows = []
    for name, masking in story.maskings.items():
        wide = masking.evaluation.over_draws().pivot_table("accuracy", ["mask", "masked"], "attack", sort=False)
        for (reason, count), values in wide.iterrows():
            rows.append([name, str(reason), str(count), *map(percent, values[attacks])])
    header = ["", "mask", "channels", "clean", "FGSM", "PGD-10"]
    print_table("3. Mask them (node A), and as many others", header, rows, left=2)
    for name, diagnosis in story.diagnoses.items():
        print_text(f"{name} – {diagnosis.sentence}")
        click.echo()
