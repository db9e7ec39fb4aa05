"""Which Parquet files of a folder are one split: all shards of one set, and nothing of another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coprobe.data.bounds import listed, short
from coprobe.errors import InputError

#: Beginnings of words that name a split; those of an earlier row count before those of a later one.
SPLIT_WORDS = {"train": ("train",), "test": ("test", "val")}
_WHOLE_WORDS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation")}
#: Words before that of a split that make something else of it: `pre_train`.
_OTHERWISE = ("pre", "non", "no", "un", "without")
_DEPTH = 3
#: What numbers a shard: `-00000-of-00002`, in older repositories with a digest behind it, or `-0`.
_SHARD = re.compile(r"(?P<name>.*?)[-_.]?(?P<number>\d+)(-of-(?P<total>\d+)(-[0-9a-f]{8,32})?)?$")


@dataclass(frozen=True)
class _Named:
    """A file and what its name says: the set that it is of, where that is, and which shard of how many it is."""

    path: Path
    place: str
    name: str
    number: int | None
    total: int | None


def split_files(path: Path, split: str) -> tuple[list[Path], tuple[str, ...]]:
    """The files of one split, sorted; and what a person should know about the choice.

    Files directly in `path` count first, then those up to three folders below, as the Hub lays them out: `data/`,
    `CONFIGURATION/test/0000.parquet`. A set that is called as the split is ("test-0") counts before one that has more
    in its name ("test_augmented-0").

    Args:
        path: a file, which serves as either split, or a folder.
        split: "train" or "test".

    Raises:
        InputError: there is none, there are several that it may be, or shards are missing.
    """
    if path.is_file():
        return [path], ("is a single file, so the same images serve as either split",)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; name a folder of Parquet files")
    present: list[_Named] = []
    for depth in (0, *range(1, _DEPTH + 1)):
        here = [_named(file, path) for file in _parquet_files(path, depth)]
        present += here
        for word in SPLIT_WORDS[split]:
            if found := [file for file in here if _is_of(file.name, word)]:
                return _one_set(path, split, word, found)
    names = short(", ".join(str(file.path.relative_to(path)) for file in present[:4]), 80) or "no Parquet file at all"
    wanted = " or ".join(f"{word}*.parquet" for word in SPLIT_WORDS[split])
    raise InputError(f"{path}: no {wanted} for the {split} split; it holds {names}")


def _parquet_files(path: Path, depth: int) -> Iterator[Path]:
    """Those so many folders below, sorted; names that begin with a dot (`.cache`) are passed over."""
    for file in sorted(path.glob("*/" * depth + "*")):
        if file.suffix.lower() == ".parquet" and not any(p.startswith(".") for p in file.relative_to(path).parts):
            yield file


def _named(file: Path, root: Path) -> _Named:
    found = _SHARD.fullmatch(file.stem.lower())
    name = found["name"] if found else file.stem.lower()
    number, total = (int(found[key]) if found and found[key] else None for key in ("number", "total"))
    folders = file.relative_to(root).parts[:-1]
    if not name and folders:  # `test/0000.parquet`
        *folders, name = folders  # type: ignore[assignment]
    return _Named(file, "/".join(folders), name.lower(), number, total)


def _is_of(name: str, word: str) -> bool:
    """Whether a word of the name begins so: "test", "cifar_test", but neither "latest" nor "pre_train"."""
    words = [part for part in re.split(r"[^a-z]+", name) if part]
    places = [place for place, part in enumerate(words) if part.startswith(word)]
    is_training = word != "train" and any(part.startswith("train") for part in words)
    return bool(places) and not is_training and all(not place or words[place - 1] not in _OTHERWISE for place in places)


def _one_set(path: Path, split: str, word: str, found: Sequence[_Named]) -> tuple[list[Path], tuple[str, ...]]:
    sets: dict[tuple[str, str], list[_Named]] = {}
    for file in found:
        sets.setdefault((file.place, file.name), []).append(file)
    whole = [key for key in sets if key[1] in _WHOLE_WORDS[word]]
    chosen = whole or list(sets)
    if len(chosen) > 1:
        names = listed(["/".join(filter(None, key)) for key in chosen])
        remedy = "the folder of one" if len({place for place, _ in chosen}) > 1 else "one file, or move the others"
        raise InputError(f"{path}: holds several sets for the {split} split ({names}); name {remedy}")
    files = sets.pop(chosen[0])
    _check_shards(path, files)
    left = listed([first.path.name for first, *_ in sets.values()])
    notes = (f"left out {left}, which {'is' if len(sets) == 1 else 'are'} of other sets",) if sets else ()
    return [file.path for file in files], notes


def _check_shards(path: Path, files: Sequence[_Named]) -> None:
    """Raise `InputError` unless each shard is there once, where they say how many there are."""
    totals = {file.total for file in files}
    if totals == {None}:
        return
    numbers = sorted(file.number for file in files if file.number is not None)
    names = listed([file.path.name for file in files])
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise InputError(f"{path}: holds shards of several divisions ({names}); remove those of the older one")
    total = int(next(iter(totals)) or 0)
    if missing := sorted(set(range(total)) - set(numbers)):
        raise InputError(f"{path}: lacks shard {missing[0]} of {total} ({names}); download it, too")
