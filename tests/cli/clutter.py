"""A working directory with everything in it that can be wrong: checkpoints, images, networks, recipes, runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from coprobe.checkpoint import Checkpoint
from coprobe.core.files import write_json
from coprobe.errors import InterruptedRunError
from coprobe.models import Classifier, build
from coprobe.training import Recipe, Run, TrainingCallback, train

#: Networks of a person's own, for `--model nets.py:…`; they take digits, 1×32×32.
NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Logits from four features of an image, changed at the end by `last`."""

    def __init__(self, last=lambda logits, x: logits, classes=10):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(1, 4, 3, stride=8)
        self.relu = nn.ReLU()
        self.head = nn.Linear(64, classes)
        self.last = last

    def forward(self, x):
        return self.last(self.head(self.relu(self.features(x)).flatten(1)), x)


def good():
    return Net()


class Tied(Net):
    """Features first and features last in a sum."""

    def forward(self, x):
        features = self.features(x)
        return self.head(self.relu(features + nn.functional.linear(features, torch.eye(4))).flatten(1))


class OneMore(Net):
    """A row of ones beside those of the images."""

    def forward(self, x):
        features = self.features(x)
        return self.head(self.relu(torch.cat([features, torch.ones_like(features[:1])]))[:-1].flatten(1))


def nan_for_bright():
    bright = lambda x: x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] > 0.14
    return Net(lambda logits, x: torch.where(bright(x), float("nan"), logits))


def nan_for_all():
    return Net(lambda logits, x: logits + 0 * x.sum() + torch.log(-x.sum().abs() - 1e-9))


def nan_weights():
    net = Net()
    net.head.weight.data[0, 0] = float("nan")
    return net


def nan_gradients():
    return Net(lambda logits, x: logits + torch.sqrt(x - x).flatten(1).sum(1, keepdim=True))


def probabilities():
    return Net(lambda logits, x: (10 * logits).softmax(1))


def constant():
    return Net(lambda logits, x: 0 * logits)


def three_classes():
    return Net(classes=3)


def pair():
    return Net(lambda logits, x: (logits, x))


def feature_map():
    return Net(lambda logits, x: logits[:, :, None, None])


def needs(width):
    return Net()


def falls_over():
    raise KeyError("backbone")


def words():
    return "resnet18"


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def shy():
    net = Net()
    net.last = lambda logits, x: logits + len(net.relu._forward_hooks)
    return net


def hungry():
    def starve(logits, x):
        if len(x) and x.mean() > 0:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")
        return logits
    return Net(starve)
'''

#: A recipe that takes no time.
RECIPE = Recipe(
    data="digits", limit_train=16, held_out=10, width=2, eps_train=26, epochs=2, batch_size=8, augment="none"
)


def make(here: Path) -> None:
    """Fill a directory; the rows of the table say what is wrong with each thing in it."""
    (here / "folder").mkdir()
    (here / "dangling").symlink_to("nowhere")
    (here / "loop.pt").symlink_to("loop.pt")
    os.mkfifo(here / "pipe.pt")
    (here / "nets.py").write_text(NETS)
    (here / "broken.py").write_text("def net(:\n")
    network = build("resnet18", width=2, num_classes=10, in_channels=1)
    arch_args = {"width": 2, "num_classes": 10, "in_channels": 1}
    about = {"data": "digits", "eps_train": 26.0}
    checkpoint = Checkpoint(Classifier(network).eval(), "resnet18", arch_args, about, {"epoch": 1}, (1, 32, 32))
    checkpoint.save(here / "tiny.pt")
    _no_checkpoints(here)
    _damaged(here, (here / "tiny.pt").read_bytes())
    _odd_weights(here, network.state_dict())
    _odd_payloads(here, network.state_dict())
    _images(here)
    _parquet(here)
    _published(here)
    _recipes(here)
    _runs(here)


def _no_checkpoints(here: Path) -> None:
    """Files of other kinds, by content."""
    (here / "empty.pt").touch()
    (here / "text.pt").write_text("no weights\n")
    (here / "page.pt").write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    (here / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (here / "zeros.pt").write_bytes(bytes(5000))
    (here / "noise.pt").write_bytes(np.random.default_rng(0).bytes(5000))
    (here / "sevenzip.pt").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(60))
    (here / "packed.pt").write_bytes(gzip.compress(b"weights", mtime=0))
    Image.new("L", (4, 4)).save(here / "picture.png")
    np.save(here / "array.npy", np.zeros(3))
    np.savez(here / "arrays.npz", weight=np.zeros(3))
    with tarfile.open(here / "bundle.pt", "w") as archive:
        archive.add(here / "text.pt", "text.pt")
    with zipfile.ZipFile(here / "script.pt", "w") as zipped:
        for name in ("net/data.pkl", "net/code/__torch__.py", "net/constants.pkl"):
            zipped.writestr(name, b"\x80\x02}.")
    with zipfile.ZipFile(here / "exported.pt2", "w") as zipped:
        zipped.writestr("net/archive_format", b"pt2")
    with zipfile.ZipFile(here / "photos.zip", "w") as zipped:
        zipped.writestr("a.png", b"")
    (here / "sharded").mkdir()
    (here / "sharded" / ".metadata").write_bytes(b"\x80\x02}.")
    (here / "sharded" / "__0_0.distcp").write_bytes(bytes(10))


def _damaged(here: Path, whole: bytes) -> None:
    """What becomes of checkpoints on bad disks and networks."""
    (here / "begun.pt").write_bytes(whole[:3])
    (here / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (here / "cut-last.pt").write_bytes(whole[:-1])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (here / "flipped.pt").write_bytes(flipped)
    with zipfile.ZipFile(here / "tiny.pt") as source, zipfile.ZipFile(here / "deflated.pt", "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member), zipfile.ZIP_DEFLATED)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    lying = header.replace(b"[2]", b"[9]")
    (here / "cut.safetensors").write_bytes(struct.pack("<Q", 10**6) + header)
    (here / "lying.safetensors").write_bytes(struct.pack("<Q", len(lying)) + lying + bytes(8))


def _odd_weights(here: Path, weights: dict[str, Tensor]) -> None:
    """Weights that are lacking, too many, of another shape, or no finite real numbers."""

    def save(name: str, changes: dict[str, Tensor]) -> None:
        torch.save({**weights, **changes}, here / name)

    stem = weights["conv1.weight"]
    torch.save({name: weight for name, weight in weights.items() if name != "linear.bias"}, here / "missing.pt")
    save("unexpected.pt", {"rotation.weight": torch.zeros(4, 2)})
    save("misshapen.pt", {"linear.bias": torch.zeros(11)})
    save("nan.pt", {"bn1.weight": weights["bn1.weight"] * float("nan")})
    save("infinite.pt", {"conv1.weight": stem + float("inf")})
    save("complex.pt", {"conv1.weight": stem + 1j})
    save("sparse.pt", {"linear.weight": weights["linear.weight"].to_sparse()})
    save("aliased.pt", {"module.conv1.weight": stem + 1})
    torch.save({"last": weights, "best": {name: weight + 1 for name, weight in weights.items()}}, here / "two.pt")
    rgb = build("resnet18", width=2, num_classes=10, in_channels=3)
    arch_args = {"width": 2, "num_classes": 10, "in_channels": 3}
    Checkpoint(Classifier(rgb).eval(), "resnet18", arch_args, image_shape=(3, 32, 32)).save(here / "rgb.pt")
    torch.save(rgb.state_dict(), here / "bare.pt")


def _odd_payloads(here: Path, weights: dict[str, Tensor]) -> None:
    """What else `torch.save` can be given."""
    for name, payload in {
        "settings.pt": {"epoch": 3, "lr": 0.1},
        "list.pt": list(weights.values()),
        "single.pt": weights["conv1.weight"],
        "numbered.pt": dict(enumerate(weights.values())),
        "newer.pt": {"format": "coprobe/99", "state_dict": weights},
        "foreign.pt": {"conv.weight": torch.zeros(2, 3, 5, 5), "fc.weight": torch.zeros(3, 7)},
    }.items():
        torch.save(payload, here / name)


def _encoded(side: int, count: int, kind: str = "PNG") -> list[bytes]:
    """So many different images."""
    images = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, kind)
        images.append(file.getvalue())
    return images


def _claiming(side: int) -> bytes:
    """A PNG that says it has so many pixels a side, and has none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _classes(root: Path, images: Sequence[bytes], suffix: str = ".png") -> None:
    """A class folder for every image; b"" is none."""
    for number, image in enumerate(images):
        (root / f"c{number}").mkdir(parents=True)
        if image:
            (root / f"c{number}" / f"a{suffix}").write_bytes(image)


def _images(here: Path) -> None:
    """Folders of images; `colours` is as `rgb.pt` wants them, ten classes of 32×32."""
    small, fit, jpegs = _encoded(16, 10), _encoded(32, 10), _encoded(32, 10, "JPEG")
    _classes(here / "colours", fit)
    _classes(here / "small", small)
    _classes(here / "dots", _encoded(4, 10))
    _classes(here / "one", fit[:1])
    _classes(here / "two", fit[:2])
    _classes(here / "mixed", [*fit[:9], small[9]])
    _classes(here / "torn", jpegs, ".jpg")
    (here / "torn" / "c9" / "b.jpg").write_bytes(jpegs[0][: len(jpegs[0]) // 2])
    _classes(here / "page", [*jpegs[:9], b"<!DOCTYPE html><html></html>"], ".jpg")
    _classes(here / "huge", [*fit[:9], _claiming(60000)])
    _classes(here / "hollow", [b""] * 10)
    _classes(here / "all-torn", [jpeg[:60] for jpeg in jpegs], ".jpg")
    (here / "loose").mkdir()
    (here / "loose" / "a.png").write_bytes(fit[0])
    _classes(here / "strangers" / "train", fit[:2])
    _classes(here / "strangers" / "test", fit[:3])


def _parquet(here: Path) -> None:
    """Single Parquet files, which serve as either split."""

    def write(name: str, images: Sequence[Any], labels: Sequence[Any], column: str = "image") -> Path:
        path = here / name
        pq.write_table(pa.table({column: images, "label": pa.array(labels)}), path)
        return path

    pictures = [{"bytes": image} for image in _encoded(32, 10)]
    whole = write("whole.parquet", pictures, range(10)).read_bytes()
    (here / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    write("column.parquet", pictures, range(10), "photo")
    write("paths.parquet", ["a.png"] * 10, range(10))
    write("words.parquet", pictures, list("abcdefghij"))
    write("unlabelled.parquet", pictures, [*range(9), None])
    write("negative.parquet", pictures, [*range(9), -1])
    write("many.parquet", pictures, [*range(9), 10**7])
    write("eleven.parquet", pictures, range(1, 11))
    write("none.parquet", pa.array([], pa.struct([("bytes", pa.binary())])), pa.array([], pa.int64()))


def _published(here: Path) -> None:
    """Where published data sets are kept; of CIFAR-10 there is nothing yet, and the others are something else."""
    for name in ("cifar-100-python/train", "test_32x32.mat", "tiny-imagenet-200/wnids.txt"):
        path = here / "data-sets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("something else")


def _recipes(here: Path) -> None:
    """What `--recipe` may be given."""
    (here / "list.json").write_text('["epochs", 3]')
    (here / "key.json").write_text('{"epochz": 3}')
    (here / "kind.json").write_text('{"epochs": "3"}')
    (here / "cut.json").write_text('{"epochs": 3')
    (here / "nul.json").write_text('{"data": "folder:a\\u0000b"}')
    write_json(here / "small.json", RECIPE.to_dict())


def _runs(here: Path) -> None:
    """A run that was stopped, the same with damage in it, and one that is said to be finished."""
    _stop(RECIPE, here / "stopped")
    whole = (here / "stopped" / "resume.pt").read_bytes()
    for name, state in {"cut-state": whole[:-40], "no-state": b"", "other-state": b"\x80\x02}."}.items():
        run = Run(here / name)
        run.directory.mkdir()
        run.resumable.write_bytes(state)
        write_json(run.directory / "recipe.json", Run(here / "stopped").about())
    (here / "no-recipe").mkdir()
    (here / "no-recipe" / "recipe.json").write_text("{")
    (here / "no-recipe" / "resume.pt").write_bytes(whole)
    done = Run(here / "done")
    done.directory.mkdir()
    done.checkpoint.write_bytes((here / "tiny.pt").read_bytes())
    write_json(done.directory / "recipe.json", {**Run(here / "stopped").about(), "outcome": {"epochs": 2}})
    (here / "small-runs").mkdir()
    write_json(here / "small-runs" / "scale.json", {"scale": "small"})
    (here / "marked-badly").mkdir()
    (here / "marked-badly" / "scale.json").write_text("small")
    (here / "occupied" / "co").mkdir(parents=True)
    write_json(here / "occupied" / "co" / "recipe.json", {**Run(here / "stopped").about(), "epochs": 3})


def _stop(recipe: Recipe, out: Path) -> None:
    """Train until the second update, and stop there with what is needed to go on."""
    updates = []

    def interrupt(images: int) -> None:
        updates.append(images)
        if len(updates) == 2:
            os.kill(os.getpid(), 15)

    try:
        train(recipe, out, callback=TrainingCallback(interrupt))
    except InterruptedRunError:
        return
    raise AssertionError("the run was not stopped")
