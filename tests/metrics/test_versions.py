"""Versions of metrics and attacks: results that are kept are made anew when the numbers have changed, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from coprobe.attacks import ATTACKS, parse
from coprobe.checkpoint import Checkpoint
from coprobe.metrics import METRICS, Accuracy, ChannelActivations
from coprobe.metrics.gradient_alignment import GradientAlignment
from coprobe.models import Classifier, build
from coprobe.probe import Probe
from tests.toys import EPSILON, Overfitted, checkpoint, grey


def probe(cache: Path) -> Probe:
    return Probe(checkpoint(Overfitted()), grey(12), EPSILON, cache=cache)


def kept(cache: Path) -> int:
    return len(list(cache.glob("*.parquet")))


def test_another_version_of_a_metric_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        probe(tmp_path).measure(GradientAlignment())
    assert kept(tmp_path) == 1
    monkeypatch.setattr(GradientAlignment, "version", 2)
    probe(tmp_path).measure(GradientAlignment())
    assert kept(tmp_path) == 2


def test_another_version_of_an_attack_is_crafted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacks: list[str]
) -> None:
    metric = Accuracy(attacks=("fgsm", "cw:2"))
    for _ in range(2):
        probe(tmp_path).measure(metric)
    assert attacks == ["fgsm", "cw:2"]
    monkeypatch.setattr(ATTACKS["cw"], "version", 2)
    probe(tmp_path).measure(metric)
    probe(tmp_path).measure(Accuracy(attacks=("fgsm",)))
    assert attacks[2:] == ["fgsm", "cw:2", "fgsm"] and kept(tmp_path) == 3
    probe(tmp_path).measure(Accuracy(attacks=("fgsm",)))
    assert len(attacks) == 5


def test_every_part_has_a_version() -> None:
    assert {type(entry.value.version) for registry in (ATTACKS, METRICS) for entry in registry.entries()} == {int}
    assert parse("pgd:2", 0.1).version == 1


def test_another_way_to_look_at_places_makes_only_foreign_ones_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Classifier(build("resnet18", width=4, num_classes=10)).eval()
    ours = Checkpoint(network, "resnet18", {"width": 4, "num_classes": 10, "in_channels": 3})
    for version in (2, 3):
        monkeypatch.setattr("coprobe.metrics.pipeline.VERSION", version)
        for node in ("A", "layer1.0"):
            Probe(ours, grey(2), EPSILON, cache=tmp_path).measure(ChannelActivations(nodes=(node,), attack="fgsm"))
    assert kept(tmp_path) == 1 + 2
