"""The Python of the README runs as it stands there, one block after the other, on a small network and few images."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from coprobe.metrics import NO_NOISE, Noise
from coprobe.models import build
from coprobe.nodes import NO_MASK, ChannelMask

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = [
    textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", README.read_text(), re.M | re.S)
]


@pytest.mark.filterwarnings("ignore")
def test_the_python_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = build("resnet18", width=8).eval()
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    before = network(images)
    world: dict[str, Any] = {
        "model": network, "network": network, "images": images, "preprocessed": (images - 0.5) / 0.25,
        "x": images, "y": labels, "mean": (0.5,) * 3, "std": (0.25,) * 3,
        "noises": (NO_NOISE, Noise("uniform", 16 / 255)), "masks": (NO_MASK, ChannelMask({"A": (1,)}, "one")),
    }  # fmt: skip
    assert len(BLOCKS) >= 3
    for number, block in enumerate(BLOCKS):
        exec(compile(block, str(README), "exec"), world)
        assert number or not torch.equal(world["logits"], before), "masked, as the first one says"
        assert torch.equal(network(images), before)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("under PGD-10", "PGD-50", "torchattacks.PGD", "T_act > 0.5"))
    assert len(world["evaluation"].frame) == 12 and world["statistics"].frame["node"].nunique() == 2
    assert world["steps"].frame["step"].max() == 10
