"""Whatever is changed in a file, the reader refuses it or reads it: no crash, no hang, no exception but its own."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path
from subprocess import run

import pytest

from tests.checkpoint.reader import fuzz, seeds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.procs,
    pytest.mark.skipif(os.name == "nt", reason="hangs are ended by signals"),
]

MUTANTS = 20_000
#: Changed bits of each file that are tried; `python -m tests.checkpoint.reader.fuzz --flips FILE` tries all.
FLIPS = 2_000


@pytest.fixture(scope="session")
def total() -> fuzz.Tally:
    return fuzz.campaign(MUTANTS)


def test_no_mutant_crashes_hangs_or_escapes(total: fuzz.Tally) -> None:
    assert total.faults == {}, "\n".join(f"{number}: {fault}" for number, fault in total.faults.items())
    assert total.counts.total() == MUTANTS
    assert total.slowest[0] < 1


def test_the_mutants_reach_beyond_the_checksums(total: fuzz.Tally) -> None:
    assert total.of("refused") > MUTANTS // 2
    assert total.of("same") > MUTANTS // 100
    for name in ("zip deep", "zip-module deep", "zip-extras deep", "legacy plain", "plain plain", "safetensors deep"):
        assert total.of("other", name) > 10, name


def test_no_changed_archive_is_read_with_other_content_and_no_sealed_one_at_all(total: fuzz.Tally) -> None:
    archives = ("zip plain", "zip-extras plain", "zip-module plain", "zip-sparse plain", "zip-other plain")
    assert {name: total.of("other", name) for name in archives} == dict.fromkeys(archives, 0)
    assert total.of("other", "sealed-zip") == total.of("same", "sealed-zip") == 0
    assert total.of("refused", "sealed-zip") > MUTANTS // 20


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, seeds.Seed]:
    return {seed.name: seed for seed in seeds.seeds(tmp_path_factory.mktemp("seeds"))}


@pytest.mark.parametrize("name", ["sealed-zip", "sealed-safetensors"])
def test_a_changed_bit_of_our_own_files_is_always_detected(
    name: str, honest: dict[str, seeds.Seed], tmp_path: Path
) -> None:
    data = honest[name].data
    bits = random.Random(0).sample(range(8 * len(data)), FLIPS)
    assert fuzz.flips(data, bits, tmp_path) == {"refused": FLIPS}


@pytest.mark.parametrize("name", ["zip", "zip-extras"])
def test_a_changed_bit_of_a_foreign_archive_is_refused_or_means_nothing(
    name: str, honest: dict[str, seeds.Seed], tmp_path: Path
) -> None:
    data = honest[name].data
    counts = fuzz.flips(data, random.Random(0).sample(range(8 * len(data)), FLIPS), tmp_path)
    assert counts["other"] <= FLIPS // 1000
    assert counts["refused"] > FLIPS // 2


def test_a_mutant_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import hashlib, pathlib, sys; from tests.checkpoint.reader.fuzz import Fuzzer;"
        "f = Fuzzer(0, pathlib.Path(sys.argv[1]));"
        "print(hashlib.sha256(b''.join(f.mutant(n)[2] for n in range(200))).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    theirs = run(command, cwd=fuzz.ROOT, capture_output=True, text=True, check=True).stdout.strip()
    fuzzer = fuzz.Fuzzer(0, tmp_path)
    assert theirs == hashlib.sha256(b"".join(fuzzer.mutant(number)[2] for number in range(200))).hexdigest()


def test_a_dead_child_is_a_crash_and_the_campaign_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    total, calls = fuzz.Tally(), []

    def die_once(start: int, stop: int, seed: int, skip: set[int], marker: Path, found: fuzz.Tally) -> int:
        calls.append((start, set(skip)))
        if len(calls) == 1:
            marker.write_bytes(b"%20d" % 107)
            return 1
        return 2

    monkeypatch.setattr(fuzz, "_run_child", die_once)
    fuzz._run_range(0, 300, 0, total)
    assert calls == [(0, set()), (100, {107})]
    assert total.of("crash") == 1
    assert list(total.faults) == ["107"]
