"""Train a small convolutional network, save it, and go on from the file as another process would.

pip install ".[demo]" && python examples/checkpoint.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import drupe
from drupe import nn, ops


def network() -> nn.Sequential:
    """Two convolutions over 8 x 8 images, and a classifier of 10 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, activation="relu"),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def accuracy(model: nn.Sequential, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of images that the model labels right."""
    model.eval()
    with drupe.no_grad():
        scores = model(drupe.as_tensor(x)).numpy()
    model.train()
    return float((scores.argmax(1) == y).mean())


def main() -> None:
    """Train, save, load, and check that nothing was lost on the way."""
    drupe.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]

    model = network()
    optimizer = drupe.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(8):
        order = drupe.random.generator().permutation(len(x))
        for batch in np.array_split(order, len(x) // 64):
            loss = ops.cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, held-out accuracy {accuracy(model, x_test, y_test):.1%}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        drupe.save(path, model.state_dict(), metadata={"epochs": "8"})
        restored = network()
        restored.load_state_dict(drupe.load(path))
        print(f"{path.name}: {path.stat().st_size} bytes, {drupe.load_metadata(path)}")
    assert accuracy(restored, x_test, y_test) == accuracy(model, x_test, y_test) > 0.9


if __name__ == "__main__":
    main()
