"""A public scanner's view of the corpus: it calls the files that run code unsafe, so they are what they claim."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.reader import corpus

fickle = pytest.importorskip("fickling.fickle", reason="the scanner is not installed")


#: What fickling 0.1.12 can't follow; each runs in the control of `test_hostile`.
_BEYOND_IT = {f"code-extension-{width}.pt" for width in (1, 2, 4)}


def _pickles(path: Path) -> Iterator[bytes]:
    """The pickles of a file: the one of an archive, or those that follow each other."""
    data = path.read_bytes()
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield archive.read("archive/data.pkl")
    else:
        yield data


def _verdict(path: Path) -> str:
    from fickling.analysis import Severity, check_safety

    worst = Severity.LIKELY_SAFE
    for raw in _pickles(path):
        stream = io.BytesIO(raw)
        try:
            for pickled in fickle.StackedPickle.load(stream):
                worst = max(worst, check_safety(pickled).severity)
        except Exception as error:
            if worst == Severity.LIKELY_SAFE:
                return f"gives up: {type(error).__name__} {error}"
    return worst.name


def test_a_scanner_flags_every_file_that_names_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    chosen = [entry for entry in corpus.entries() if entry.code]
    traps = corpus.build(tmp_path, chosen)
    verdicts = {name: _verdict(trap.path) for name, trap in traps.items()}
    missed = {
        name: verdict for name, verdict in verdicts.items() if "UNSAFE" not in verdict and "MALICIOUS" not in verdict
    }
    assert set(missed) == _BEYOND_IT, missed
    # An honest tensor is "likely unsafe" to it, since torch is none of its standard modules.
    assert sum("MALICIOUS" in verdict for verdict in verdicts.values()) >= 100
    assert not any(trap.sprung for trap in traps.values())


def test_the_scanner_calls_an_honest_pickle_safe(tmp_path: Path) -> None:
    from tests.checkpoint.reader import opcodes as op

    honest = tmp_path / "honest.pkl"
    honest.write_bytes(op.pickled(op.named(epoch=op.number(7))))
    assert _verdict(honest) == "LIKELY_SAFE"
