"""The plan of the paper: what feeds each figure, each table and the claims, and what of it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from coprobe.core.files import atomic
from coprobe.errors import unknown
from coprobe.figures.style import save_all
from coprobe.figures.tables import save_table
from coprobe.paper import claims, tables
from coprobe.paper.figures import FIGURES, caption
from coprobe.paper.jobs import Job, Order, plan_jobs, precision_on
from coprobe.paper.needs import Need, merged
from coprobe.paper.results import MissingResultError, Results
from coprobe.paper.runs import RUNS

CLAIMS = "claims"


@dataclass(frozen=True)
class Item:
    """A figure, a table, or the list of claims.

    Attributes:
        name: fig01, tab1, claims.
        title: what it shows.
        needs: what it is made from; a `history` comes with the training.
        render: writes it into a directory; raises `MissingResultError` while it can't be.
    """

    name: str
    title: str
    needs: tuple[Need, ...]
    render: Callable[[Results, Path], list[Path]]


@dataclass(frozen=True)
class Rendered:
    """The files that were written, and why other items could not be."""

    files: list[Path] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def items() -> dict[str, Item]:
    """Everything that the paper shows, by name."""
    found = [
        Item(
            figure.name,
            figure.title,
            (*figure.needs, *(Need(run, "history") for run in figure.runs)),
            partial(_render_figure, number),
        )
        for number, figure in FIGURES.items()
    ]
    found += [
        Item(
            f"tab{number}",
            table.title,
            tuple(tables.needs(number)),
            partial(_render_table, number),
        )
        for number, table in tables.TABLES.items()
    ]
    histories = (Need(run, "history") for run in RUNS)
    found.append(Item(CLAIMS, "Claims C01 to C45 and controls", (*claims.needs(), *histories), _render_claims))
    return {item.name: item for item in found}


def chosen(only: Sequence[str] = ()) -> list[Item]:
    """The items of these names, all if none is named; `fig3` and `tab05` will do.

    Raises:
        InputError: a name that is none.
    """
    known = items()
    if not only:
        return list(known.values())
    found: list[str] = []
    for name in only:
        kind, digits = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
        full = f"{kind}{int(digits):0{2 if kind == 'fig' else 1}d}" if digits else name
        if full not in known:
            raise unknown("figure or table", name, known)
        found.append(full)
    return [known[name] for name in dict.fromkeys(found)]


def order_of(results: Results, chosen_items: Sequence[Item], **how: Any) -> Order:
    """What has to be made for these items; `how`: device, repair."""
    needs = merged(need for item in chosen_items for need in item.needs if need.run in results.runs)
    needs = [replace(need, sources=tuple(s for s in need.sources if s in results.runs)) for need in needs]
    return Order(
        results.directory, results.scale, tuple(needs), dict(results.data), results.seeds, results.weights, **how
    )


def render(results: Results, out: Path, chosen_items: Sequence[Item]) -> Rendered:
    """Write every item that can be written; raises `DamagedError` for a damaged result."""
    rendered = Rendered()
    for item in chosen_items:
        try:
            rendered.files.extend(item.render(results, out))
        except MissingResultError as error:
            rendered.missing[item.name] = str(error)
    return rendered


def overview(order: Order, chosen_items: Sequence[Item], seconds_per_pass: float) -> pd.DataFrame:
    """What is there and what is missing: a row per item with runs, untrained, measurements, unmeasured and minutes.

    The minutes are those of one job at a time; what several items need counts for the first of them.
    """
    rows, so_far = [], 0.0
    for place, item in enumerate(chosen_items):
        needs = order_of(order.results, [item]).needs
        measured = [need for need in needs if need.kind != "history"]
        runs = {name for need in needs for name in (need.run, *need.sources)}
        together = order_of(order.results, chosen_items[: place + 1]).needs
        before, so_far = so_far, sum(job.passes for job in plan_jobs(replace(order, needs=together)))
        trainings = [(run, seed) for run in runs for seed in range(order.results.seeds_of(run))]
        measurements = [(need, seed) for need in measured for seed in range(order.results.seeds_of(need.run))]
        rows.append(
            {
                "item": item.name,
                "title": item.title,
                "runs": len(trainings),
                "untrained": sum(not order.is_trained(*one) for one in trainings),
                "measurements": len(measurements),
                "unmeasured": sum(not order.is_measured(*one) for one in measurements),
                "minutes": (so_far - before) * seconds_per_pass / 60,
            }
        )
    return pd.DataFrame(rows)


def seconds_per_pass(order: Order) -> float:
    """How long a forward and a backward pass of one image takes here, measured on the network of the scale.

    On a CPU in seconds of one processor, whatever else works there.
    """
    import torch

    from coprobe.core.engine import one_thread
    from coprobe.fast.layout import layout_of
    from coprobe.models import Classifier, build

    recipe = order.results.recipe("mep-12")
    network = build(recipe.arch, num_classes=10, in_channels=3, **({"width": recipe.width} if recipe.width else {}))
    model = Classifier(network)
    model.precision = precision_on(recipe, order.device)
    layout = layout_of(model)
    model.to(order.device).to(memory_format=layout)
    images = torch.rand(recipe.batch_size, 3, 32, 32, device=order.device).to(memory_format=layout).requires_grad_()
    clock = time.process_time if images.device.type == "cpu" else time.perf_counter
    took = []
    with one_thread():
        for _ in range(4):
            began = clock()
            model(images).sum().backward()
            if images.is_cuda:
                torch.cuda.synchronize()
            took.append(clock() - began)
    return min(took) / len(images)


def minutes(jobs: Sequence[Job], per_pass: float, at_once: int) -> float:
    """About how long jobs take, so many at a time."""
    return sum(job.passes for job in jobs) * per_pass / 60 / max(1, at_once)


def _render_figure(number: int, results: Results, out: Path) -> list[Path]:
    figure = FIGURES[number]
    frame = figure.content(results)
    about = caption(results, figure)
    facts = {"title": figure.title, "about": about, **_provenance(results, figure.runs, figure.needs)}
    return save_all(figure.draw(frame, about=about), frame, out, figure.name, facts)


def _render_table(number: int, results: Results, out: Path) -> list[Path]:
    title, about = tables.TABLES[number].title, tables.about(number, results)
    return save_table(tables.content(number, results), out, f"tab{number}", f"Table {number}. {title}", about)


def _render_claims(results: Results, out: Path) -> list[Path]:
    frame = claims.judged(results)
    paths = [out / "claims.csv", out / "claims.md"]
    for path, text in zip(paths, (frame.to_csv(index=False), claims.markdown(frame)), strict=True):
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _provenance(results: Results, runs: Sequence[str], needs: Sequence[Need]) -> dict[str, Any]:
    """Which runs a figure is from, and with what they were made."""
    names = list(dict.fromkeys([*runs, *(need.run for need in needs)]))
    made = [results.run(name).about().get("provenance", {}) for name in names]
    found = {key: sorted({str(one[key]) for one in made if one.get(key)}) for key in ("commit", "device", "torch")}
    return {
        "scale": results.scale.name,
        "seeds": results.seeds_shown(names),
        "runs": ", ".join(names),
        **{key: ", ".join(values) for key, values in found.items()},
    }
