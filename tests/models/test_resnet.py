from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe import ops
from drupe.models import ResNet, ResNetConfig


def norm(prefix, channels):
    names = {f"{prefix}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {**names, f"{prefix}.num_batches_tracked": ()}


def convs(prefix, *shapes):
    """Names and shapes of convolutions without bias and their batch norms, as torchvision lists them."""
    names = {}
    for i, shape in enumerate(shapes, start=1):
        names |= {f"{prefix}conv{i}.weight": shape, **norm(f"{prefix}bn{i}", shape[0])}
    return names


def shortcut(prefix, out_channels, in_channels):
    weight = {f"{prefix}downsample.0.weight": (out_channels, in_channels, 1, 1)}
    return {**weight, **norm(f"{prefix}downsample.1", out_channels)}


RESNET18 = {
    **convs("", (64, 3, 7, 7)),
    **convs("layer1.0.", (64, 64, 3, 3), (64, 64, 3, 3)),
    **convs("layer1.1.", (64, 64, 3, 3), (64, 64, 3, 3)),
    **convs("layer2.0.", (128, 64, 3, 3), (128, 128, 3, 3)),
    **shortcut("layer2.0.", 128, 64),
    **convs("layer2.1.", (128, 128, 3, 3), (128, 128, 3, 3)),
    **convs("layer3.0.", (256, 128, 3, 3), (256, 256, 3, 3)),
    **shortcut("layer3.0.", 256, 128),
    **convs("layer3.1.", (256, 256, 3, 3), (256, 256, 3, 3)),
    **convs("layer4.0.", (512, 256, 3, 3), (512, 512, 3, 3)),
    **shortcut("layer4.0.", 512, 256),
    **convs("layer4.1.", (512, 512, 3, 3), (512, 512, 3, 3)),
    "fc.weight": (1000, 512),
    "fc.bias": (1000,),
}
SMALL_BOTTLENECK = {
    **convs("", (4, 3, 7, 7)),
    **convs("layer1.0.", (4, 4, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1)),
    **shortcut("layer1.0.", 16, 4),
    **convs("layer2.0.", (8, 16, 1, 1), (8, 8, 3, 3), (32, 8, 1, 1)),
    **shortcut("layer2.0.", 32, 16),
    **convs("layer2.1.", (8, 32, 1, 1), (8, 8, 3, 3), (32, 8, 1, 1)),
    "fc.weight": (10, 32),
    "fc.bias": (10,),
}
DIGITS = ResNetConfig.digits(width=8)
BOTTLENECK = ResNetConfig(layers=(1, 2), bottleneck=True, width=4, num_classes=10)


def make(config):
    drupe.manual_seed(3)
    return ResNet(config)


def test_names_and_shapes_are_torchvisions():
    for config, names in ((ResNetConfig.resnet18(), RESNET18), (BOTTLENECK, SMALL_BOTTLENECK)):
        assert {name: value.shape for name, value in make(config).state_dict().items()} == names


def test_resnet50_has_as_many_parameters_as_published():
    assert sum(p.size for p in make(ResNetConfig.resnet50()).parameters()) == 25_557_032


@pytest.mark.parametrize(
    ("config", "shape"), [(DIGITS, (4, 1, 8, 8)), (BOTTLENECK, (2, 3, 33, 40))], ids=["basic", "bottleneck"]
)
def test_every_parameter_gets_a_gradient(rng, config, shape):
    model = make(config)
    x = rng.standard_normal(shape).astype(np.float32)
    ops.cross_entropy(model(x), rng.integers(0, 10, shape[0])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.numpy()
        assert np.isfinite(grad).all(), name
        assert np.abs(grad).max() > 0, name


def test_overfits_one_batch_and_evaluates_deterministically(rng):
    model = make(DIGITS)
    x = rng.standard_normal((16, 1, 8, 8)).astype(np.float32)
    history = model.fit(x, rng.integers(0, 10, 16), epochs=30, batch_size=16, learning_rate=1e-2)
    assert history["loss"][-1] < 0.05 < history["loss"][0]
    assert history["accuracy"][-1] == 1
    np.testing.assert_array_equal(model.predict(x), model.predict(x))
    # With running statistics, rows do not depend on each other.
    np.testing.assert_allclose(model.predict(x)[:3], model.predict(x[:3]), rtol=1e-5, atol=1e-5)


def test_save_and_load_give_the_same_logits(rng, tmp_path):
    model = make(DIGITS)
    x = rng.standard_normal((5, 1, 8, 8)).astype(np.float32)
    model.fit(x, np.arange(5), epochs=2, batch_size=5)
    model.save(tmp_path / "resnet.safetensors")
    drupe.manual_seed(4)
    other = ResNet(DIGITS)
    assert not np.array_equal(model.predict(x), other.predict(x))
    other.load(tmp_path / "resnet.safetensors")
    np.testing.assert_array_equal(model.predict(x), other.predict(x))


def test_residual_branches_can_start_as_nothing():
    for config, name in ((DIGITS, "bn2"), (BOTTLENECK, "bn3")):
        model = make(ResNetConfig(**{**config.__dict__, "zero_init_residual": True}))
        assert np.abs(model.state_dict()[f"layer1.0.{name}.weight"].numpy()).max() == 0


def test_errors():
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 8, 8\): expected \(batch, 1, rows, columns\)"):
        make(DIGITS)(np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(ValueError, match='stem is "large"'):
        ResNetConfig(stem="large")
    with pytest.raises(ValueError, match="layers is"):
        ResNetConfig(layers=(2, 0))


def torch_forward(torch, config, state, x):
    """The network from the paper's description, in torch's functions."""
    F = torch.nn.functional

    def conv_bn(x, prefix, conv, bn, stride=1):
        weight = state[f"{prefix}{conv}.weight"]
        parts = [state[f"{prefix}{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), *parts)

    small = config.stem == "small"
    x = F.relu(conv_bn(x, "", "conv1", "bn1", 1 if small else 2))
    x = x if small else F.max_pool2d(x, 3, 2, 1)
    count, strided = (3, 2) if config.bottleneck else (2, 1)
    for stage, blocks in enumerate(config.layers, start=1):
        for i in range(blocks):
            prefix, stride, y = f"layer{stage}.{i}.", 2 if stage > 1 and i == 0 else 1, x
            for k in range(1, count + 1):
                y = conv_bn(y, prefix, f"conv{k}", f"bn{k}", stride if k == strided else 1)
                y = F.relu(y) if k < count else y
            if f"{prefix}downsample.0.weight" in state:
                x = conv_bn(x, prefix, "downsample.0", "downsample.1", stride)
            x = F.relu(x + y)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("config", [DIGITS, BOTTLENECK], ids=["basic", "bottleneck"])
def test_logits_are_those_of_torch(rng, config):
    torch = pytest.importorskip("torch")
    model = make(config)
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            values = rng.standard_normal(tensor.shape) * 0.3
            tensor.copy_from((np.abs(values) + 0.5 if "var" in name else values).astype(np.float32))
    state = {name: torch.from_numpy(np.array(value.numpy())) for name, value in model.state_dict().items()}
    x = rng.standard_normal((2, config.in_channels, 24, 17)).astype(np.float32)
    expected = torch_forward(torch, config, state, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-4, atol=1e-4)
