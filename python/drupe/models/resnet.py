"""ResNet: a convolutional network with residual connections.

Names of parameters are torchvision's, so that its checkpoints load here and ours there.

Reference:
    K. He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4; the stride of a
    bottleneck sits in its 3x3 convolution, as in torchvision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from drupe import nn, ops
from drupe.nn import AdaptiveAvgPool2d, BatchNorm2d, Conv2d, Linear, MaxPool2d, Module, Sequential, conv_norm
from drupe.tensor import Tensor
from drupe.train import Model

_NHWC = "NHWC"  # what the convolutions run in; images come in as NCHW


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet.

    Attributes:
        layers: blocks in each stage; every stage but the first halves the resolution and doubles the width.
        bottleneck: blocks of 1x1, 3x3, 1x1 convolutions that widen by 4, instead of two 3x3.
        width: channels of the first stage.
        in_channels: of the images.
        num_classes: of the answer.
        stem: ``"imagenet"``: 7x7 convolution of stride 2 and max pooling; ``"small"``: 3x3 convolution of stride 1,
            for images of few pixels.
        zero_init_residual: start every block as the identity.
    """

    layers: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    in_channels: int = 3
    num_classes: int = 1000
    stem: str = "imagenet"
    zero_init_residual: bool = False

    def __post_init__(self) -> None:
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f'[ResNetConfig] stem is "{self.stem}": expected "imagenet" or "small"')
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"[ResNetConfig] layers is {self.layers}: expected one positive number per stage")

    @property
    def expansion(self) -> int:
        """How many times its width a block puts out."""
        return 4 if self.bottleneck else 1

    @classmethod
    def resnet18(cls, **changes: Any) -> ResNetConfig:
        """Return the sizes of ResNet-18."""
        return replace(cls(), **changes)

    @classmethod
    def resnet34(cls, **changes: Any) -> ResNetConfig:
        """Return the sizes of ResNet-34."""
        return replace(cls(layers=(3, 4, 6, 3)), **changes)

    @classmethod
    def resnet50(cls, **changes: Any) -> ResNetConfig:
        """Return the sizes of ResNet-50."""
        return replace(cls(layers=(3, 4, 6, 3), bottleneck=True), **changes)

    @classmethod
    def digits(cls, **changes: Any) -> ResNetConfig:
        """Return sizes for grey images of 8x8 pixels in 10 classes."""
        sizes = cls(layers=(1, 1, 1), width=16, in_channels=1, num_classes=10, stem="small")
        return replace(sizes, **changes)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False, layout=_NHWC)


def _norm(channels: int) -> BatchNorm2d:
    return BatchNorm2d(channels, layout=_NHWC)


class BasicBlock(Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = _norm(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = _norm(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Any:
        """Return (B, H / stride, W / stride, width) for (B, H, W, C)."""
        y = conv_norm(x, self.conv1, self.bn1, activation="relu")
        return conv_norm(y, self.conv2, self.bn2, residual=_shortcut(x, self.downsample), activation="relu")


class Bottleneck(Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = _norm(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = _norm(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = _norm(4 * width)
        self.downsample = _downsample(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Any:
        """Return (B, H / stride, W / stride, 4 width) for (B, H, W, C)."""
        y = conv_norm(x, self.conv1, self.bn1, activation="relu")
        y = conv_norm(y, self.conv2, self.bn2, activation="relu")
        return conv_norm(y, self.conv3, self.bn3, residual=_shortcut(x, self.downsample), activation="relu")


def _shortcut(x: Tensor, downsample: Sequential | None) -> Any:
    """Return what a block's branch is added to."""
    if downsample is None:
        return x
    conv, norm = downsample
    assert isinstance(conv, Conv2d)
    assert isinstance(norm, BatchNorm2d)
    return conv_norm(x, conv, norm)


def _downsample(in_channels: int, out_channels: int, stride: int) -> Sequential | None:
    """Return a projection where the shortcut changes shape, None where it is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Sequential(_conv(in_channels, out_channels, 1, stride), _norm(out_channels))


class ResNet(Model):
    """A ResNet that classifies images.

    Args:
        config: the sizes.
    """

    def __init__(self, config: ResNetConfig) -> None:
        self.config = config
        small = config.stem == "small"
        self.conv1 = _conv(config.in_channels, config.width, 3 if small else 7, 1 if small else 2)
        self.bn1 = _norm(config.width)
        self.maxpool = None if small else MaxPool2d(3, 2, 1, layout=_NHWC)
        channels = config.width
        for i, blocks in enumerate(config.layers):
            width = config.width * 2**i
            stage = _stage(config, channels, width, blocks, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", stage)
            channels = width * config.expansion
        self.avgpool = AdaptiveAvgPool2d(1, layout=_NHWC)
        self.fc = Linear(channels, config.num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, Conv2d):
                nn.init.kaiming_normal(module.weight, mode="fan_out")
            if self.config.zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros(module.bn2.weight if isinstance(module, BasicBlock) else module.bn3.weight)

    def forward(self, x: Any) -> Any:
        """Return logits (B, num_classes) for images (B, C, H, W)."""
        if len(x.shape) != 4 or x.shape[1] != self.config.in_channels:
            expected = f"(batch, {self.config.in_channels}, rows, columns)"
            raise ValueError(f"[ResNet] images have shape {tuple(x.shape)}: expected {expected}")
        x = ops.permute(x, (0, 2, 3, 1))  # (B, H, W, C)
        x = conv_norm(x, self.conv1, self.bn1, activation="relu")
        if self.maxpool is not None:
            x = self.maxpool(x)
        for i in range(len(self.config.layers)):
            x = getattr(self, f"layer{i + 1}")(x)
        x = self.avgpool(x)  # (B, 1, 1, C)
        return self.fc(x.reshape((x.shape[0], x.shape[3])))


def _stage(config: ResNetConfig, channels: int, width: int, blocks: int, stride: int) -> Sequential:
    block = Bottleneck if config.bottleneck else BasicBlock
    rest = [block(width * config.expansion, width, 1) for _ in range(blocks - 1)]
    return Sequential(block(channels, width, stride), *rest)
