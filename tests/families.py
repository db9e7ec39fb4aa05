"""Small networks that write their ReLUs in the five ways of public repositories, and a transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock

from coprobe.models import build

#: (channels, height, width) of the images that they take, and how many classes they know.
SHAPE, CLASSES = (3, 8, 8), 4


class FunctionalBlock(nn.Module):
    """As in the public CIFAR repositories: no ReLU module anywhere."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1 or into != out:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class FunctionalResNet(nn.Module):
    """Four stages of `depth` blocks."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        into = width
        for stage in range(1, 5):
            out = width * 2 ** (stage - 1)
            blocks = [FunctionalBlock(into if n == 0 else out, out, 1 + (n == 0 and stage > 1)) for n in range(depth)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            into = out
        self.linear = nn.Linear(into, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def functional_resnet(width: int = 2, depth: int = 2, classes: int = CLASSES) -> nn.Module:
    """A ResNet-18 that calls F.relu."""
    return FunctionalResNet(width, depth, classes)


class Reused(nn.Module):
    """One ReLU module for three places, in place at the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.act, self.linear = nn.ReLU(), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.conv1(x))
        out = self.act(self.bn(self.conv2(out)))
        return self.linear(self.act(out.mean((2, 3))))


def in_place() -> nn.Module:
    """In-place ReLU modules behind batch norm and behind a convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def torchvision_resnet() -> nn.Module:
    """Torchvision's own class and blocks, one block per stage, with narrow stages."""

    class Narrow(ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):  # type: ignore[no-untyped-def]
            return super()._make_layer(block, planes // 16, blocks, stride, dilate)

    network = Narrow(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    network.fc = nn.Linear(32, CLASSES)
    return network


def transformer() -> nn.Module:
    """Torchvision's vision transformer: four patches and a class token, two blocks with a GELU each."""
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    network = VisionTransformer(image_size=8, patch_size=4, num_classes=CLASSES, **sizes)
    nn.init.normal_(network.heads.head.weight)  # zero at first, and no logit would depend on the image
    return network


#: Name of a family to how its network is made and to one of its nodes that only its way of writing makes difficult.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "functional": (lambda: functional_resnet(depth=1), "layer1.0#relu2"),
    "in place": (in_place, "4"),
    "reused": (Reused, "#relu2"),
    "preact": (lambda: build("preact-resnet18", width=2, num_classes=CLASSES), "B"),
    "torchvision": (torchvision_resnet, "layer2.0#relu1"),
    "transformer": (transformer, "encoder.layers.encoder_layer_1.mlp#gelu1"),
}


def family(name: str) -> nn.Module:
    """The network of a family: always the same weights, batch norm that has seen images, and no favourite class."""
    torch.manual_seed(0)
    network = FAMILIES[name][0]()
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    images = torch.rand(64, *SHAPE)
    with torch.no_grad():
        network.train()(images)
        head.bias -= network.eval()(images).mean(0)
    return network
