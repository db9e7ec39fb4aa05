"""All weights of a file beside those of the network that they are meant for, whether they fit or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coprobe.checkpoint.description import read_description
from coprobe.checkpoint.hub import HubConfig, read_config
from coprobe.checkpoint.loading import find_file, named_network, proposer
from coprobe.checkpoint.matching import AllowedMismatch, any_known, choose, with_arguments
from coprobe.checkpoint.misfit import MisfitError, Row, rows_of
from coprobe.checkpoint.reader import open_checkpoint


def compare_weights(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pick: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> tuple[list[Row], str]:
    """Names and shapes on both sides; no weight is read.

    Args:
        path: the file, or a folder with one.
        arch: see `load`, as for the others.
        arch_args: arguments of the architecture.
        model: the person's own code.
        model_args: arguments of the factory.
        pick: which network, where the file holds several.
        allow_missing: patterns of weights that the file may lack.
        allow_unexpected: patterns of weights that are left out.

    Returns:
        A row for each weight of the file and of the network, and why they don't fit, empty if they do.

    Raises:
        InputError: as `load`, but for weights that don't fit.
    """
    hub = HubConfig() if arch or model else read_config(path)
    given = {**hub.arch_args, **(arch_args or {})}
    network = named_network(arch or hub.arch, given, model, dict(model_args or {}), on_meta=True)
    allowed = AllowedMismatch(tuple(allow_missing), tuple(allow_unexpected))
    with open_checkpoint(find_file(path)) as contents:
        description = read_description(contents.payload, contents.metadata, contents.sealed)
        propose = proposer(network, model or arch or hub.arch, dict(model_args or given), description)
        try:
            match, _ = choose(contents.payload, propose, allowed, pick=pick)
            if propose is any_known and given:
                match = with_arguments(match, given, allowed)
        except MisfitError as error:
            return rows_of(error.candidate, error.match), str(error)
        return rows_of(match.candidate, match), ""
