"""Public architectures with random weights: what is measured at a node does not depend on the size of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from coprobe.attacks import AdversarialBatch
from coprobe.metrics import ChannelActivations
from coprobe.nodes import places

pytestmark = pytest.mark.slow

IMAGES = 20


def timm(module: str, kind: str, **sizes: Any) -> nn.Module:
    made: nn.Module = getattr(pytest.importorskip(f"timm.models.{module}"), kind)(num_classes=4, **sizes)
    return made


def maxvit() -> nn.Module:
    module = pytest.importorskip("timm.models.maxxvit")
    settings = module.MaxxVitCfg(embed_dim=(32, 32), depths=(1, 1), block_type=("M", "M"), stem_width=8)
    made: nn.Module = module.MaxxVit(settings, img_size=56, num_classes=4)
    return made


FOUR = {"depths": (1, 1, 1, 1)}
#: Side of the images, and a small network of each family: patches, windows, relative positions, pyramids, folds.
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "vit": (
        32,
        lambda: timm(
            "vision_transformer", "VisionTransformer", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2
        ),
    ),
    "swin": (
        32,
        lambda: timm(
            "swin_transformer", "SwinTransformer", img_size=32, patch_size=2, embed_dim=8, depths=(2, 1),
            num_heads=(1, 2), window_size=4,
        ),
    ),
    "coat": (
        32,
        lambda: timm(
            "coat", "CoaT", img_size=32, patch_size=4, embed_dims=(8, 8, 8, 8), serial_depths=(1, 1, 1, 1),
            parallel_depth=1, num_heads=2, mlp_ratios=(1, 1, 1, 1), crpe_window={3: 1, 5: 1},
        ),
    ),
    "poolformer": (32, lambda: timm("metaformer", "MetaFormer", dims=(8, 8, 16, 16), **FOUR)),
    "levit": (
        64,
        lambda: timm(
            "levit", "Levit", img_size=64, embed_dim=(16, 24, 32), key_dim=8, depth=(1, 1, 1), num_heads=(1, 2, 2)
        ),
    ),
    "mixer": (
        32, lambda: timm("mlp_mixer", "MlpMixer", img_size=32, patch_size=8, num_blocks=1, embed_dim=16)
    ),
    "convmixer": (32, lambda: timm("convmixer", "ConvMixer", dim=8, depth=2, kernel_size=3, patch_size=4)),
    "maxvit": (56, maxvit),
    "cait": (  # with its own init_values of 1e-4 the class token hardly changes, less than float32 resolves
        32, lambda: timm("cait", "Cait", img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, init_values=1.0)
    ),
    "edgenext": (64, lambda: timm("edgenext", "EdgeNeXt", dims=(16, 16, 24, 32), heads=(4, 4, 4, 4), **FOUR)),
    "nest": (
        32,
        lambda: timm(
            "nest", "Nest", img_size=32, patch_size=4, num_levels=2, embed_dims=(8, 16), num_heads=(1, 2),
            depths=(1, 1),
        ),
    ),
    "tnt": (
        32,
        lambda: timm(
            "tnt", "TNT", img_size=32, patch_size=16, embed_dim=24, inner_dim=8, depth=1, num_heads_inner=2,
            num_heads_outer=2,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_v_act_does_not_depend_on_the_size_of_a_batch(name: str) -> None:
    torch.manual_seed(0)
    side, make = NETWORKS[name]
    model = make().eval()
    found = [place for place in places(model, (3, side, side)) if place.axis is not None and place.rows]
    assert found and (name != "tnt" or {place.rows for place in found} == {1, 4})
    clean = torch.rand(IMAGES, 3, side, side)
    pair = {"clean": clean, "a": (clean + 0.1 * torch.randn(clean.shape)).clamp(0, 1)}
    metric = ChannelActivations(nodes=tuple(place.path for place in found), attack="a")
    by_size = []
    for size in (1, 5, IMAGES):
        portions = [
            AdversarialBatch(
                start, torch.zeros(size, dtype=torch.int64), {key: x[start : start + size] for key, x in pair.items()}
            )
            for start in range(0, IMAGES, size)
        ]
        statistics = metric.measure(model, portions)
        by_size.append([statistics.v_act(place.path) for place in found])
    assert by_size[0] == pytest.approx(by_size[2], rel=1e-4) and by_size[1] == pytest.approx(by_size[2], rel=1e-4)
