from __future__ import annotations

import numpy as np
import pytest

import drupe
from drupe.data import Interactions
from drupe.models import LightGCN, LightGCNConfig
from drupe.train.losses import find_loss

CONFIG = LightGCNConfig(users=7, items=9, embedding_size=5, layers=3, l2=0.3)


def draw(rng, count=30):
    """Interactions, some of them more than once; user 6 and item 8 have none."""
    return rng.integers(0, 6, count), rng.integers(0, 8, count)


def make(users, items, /, **changes):
    drupe.manual_seed(2)
    return LightGCN(LightGCNConfig(**{**CONFIG.__dict__, **changes}), users, items)


def smoothing(config, users, items):
    """The mean of the powers of the normalised adjacency, in float64."""
    U = config.users
    adjacency = np.zeros((U + config.items,) * 2)
    for u, i in zip(users, items, strict=True):
        adjacency[u, U + i] = adjacency[U + i, u] = 1
    degrees = adjacency.sum(1)
    scale = np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1)), 0)
    adjacency *= scale[:, None] * scale
    powers = [np.linalg.matrix_power(adjacency, k) for k in range(config.layers + 1)]
    return sum(powers) / len(powers)


def tables(model):
    return np.concatenate([table.numpy() for table in model.state_dict().values()]).astype(np.float64)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_scores_are_the_formulas(device, rng, layers):
    users, items = draw(rng)
    model = make(users, items, layers=layers)
    smooth = smoothing(model.config, users, items) @ tables(model)
    expected = smooth[:7] @ smooth[7:].T
    pairs = np.repeat(np.arange(7), 9), np.tile(np.arange(9), 7)
    np.testing.assert_allclose(model.predict(pairs).reshape(7, 9), expected, rtol=1e-4, atol=1e-6)
    for given, wanted in zip(model.vectors(), (smooth[:7], smooth[7:]), strict=True):
        np.testing.assert_allclose(given.detach().numpy(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_loss_and_its_gradient_are_the_formulas(device, rng, l2):
    users, items = draw(rng)
    model = make(users, items, l2=l2).astype("float64")
    E, smoother = tables(model), smoothing(model.config, users, items)
    u, i, j = rng.integers(0, 7, 12), rng.integers(0, 9, 12), rng.integers(0, 9, 12)
    nodes = np.stack([u, 7 + i, 7 + j])
    a, b, c = (smoother @ E)[nodes]
    difference = (a * (b - c)).sum(1)
    expected = np.log1p(np.exp(-difference)).mean() + l2 / 2 * (E[nodes] ** 2).sum() / 12
    slope = (-1 / (1 + np.exp(difference)) / 12)[:, None]
    smooth_gradient, gradient = np.zeros_like(E), np.zeros_like(E)
    for rows, part in zip(nodes, (slope * (b - c), slope * a, -slope * a), strict=True):
        np.add.at(smooth_gradient, rows, part)
        np.add.at(gradient, rows, l2 / 12 * E[rows])
    gradient += smoother.T @ smooth_gradient
    loss = find_loss("bpr").function(model(u, i, j), drupe.tensor(np.ones(12)))
    loss.backward()
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-6)
    np.testing.assert_allclose(model.weight.grad.numpy(), gradient, rtol=1e-5, atol=1e-8)


def test_recommends_the_best_that_are_not_taken(device, rng):
    users, items = draw(rng)
    model = make(users, items)
    u, v = (part.numpy().astype(np.float64) for part in model.vectors())
    scores = u @ v.T
    everything = model.recommend(np.arange(7), 9, taken=True)
    np.testing.assert_array_equal(everything, np.argsort(-scores, axis=1, kind="stable"))
    scores[users, items] = -np.inf
    best = model.recommend(np.arange(7), 9)
    for user in range(7):
        left = np.isfinite(scores[user]).sum()
        np.testing.assert_array_equal(best[user, :left], np.argsort(-scores[user], kind="stable")[:left])
        assert (best[user, left:] == -1).all()
    np.testing.assert_array_equal(model.recommend(3, 4), best[3, :4])
    np.testing.assert_array_equal(model.recommend([5, 5, 0], 2), best[[5, 5, 0], :2])


def planted(rng, users=60, items=48, groups=4):
    """Users take items of their own group, popular ones more often; two of each user are held out."""
    popularity = 1 / (1 + np.arange(items // groups))
    train, test = [], []
    for user in range(users):
        own = rng.choice(items // groups, 8, replace=False, p=popularity / popularity.sum()) * groups + user % groups
        train += [(user, item) for item in own[:-2]]
        test.append(own[-2:])
    return *np.array(train).T, np.array(test)


def test_learns_a_planted_structure(rng):
    users, items, held_out = planted(rng)
    model = make(users, items, users=60, items=48, embedding_size=16, layers=2, l2=1e-4)
    data = Interactions(users, items, 48)
    history = model.fit(data, epochs=25, batch_size=120, optimizer="adam", learning_rate=0.02)
    assert history["loss"][-1] < history["loss"][0]

    def recall(recommended):
        hits = [np.isin(wanted, got).mean() for wanted, got in zip(held_out, recommended, strict=True)]
        return float(np.mean(hits))

    counts = np.tile(np.bincount(items, minlength=48).astype(float), (60, 1))
    counts[users, items] = -1
    popular = recall(np.argsort(-counts, axis=1, kind="stable")[:, :6])
    assert recall(model.recommend(np.arange(60), 6)) > max(0.6, 2 * popular)


def test_training_goes_on_from_a_checkpoint(rng, tmp_path):
    users, items, _ = planted(rng, users=12, items=12, groups=1)
    data, options = Interactions(users, items, 12), {"batch_size": 20, "seed": 3, "optimizer": "adam"}
    whole, parts = (make(users, items, users=12, items=12) for _ in range(2))
    whole.fit(data, epochs=2, **options)
    parts.fit(data, epochs=1, checkpoint=tmp_path / "c.safetensors", **options)
    parts = make(users, items, users=12, items=12)
    parts.fit(data, epochs=2, checkpoint=tmp_path / "c.safetensors", resume=True, **options)
    assert whole.weight.detach().numpy().tobytes() == parts.weight.detach().numpy().tobytes()


def test_saves_under_the_authors_names(device, rng, tmp_path):
    users, items = draw(rng)
    model, other = make(users, items), make(users, items)
    other.weight.copy_from(np.zeros(other.weight.shape, np.float32))
    model.save(tmp_path / "m.safetensors")
    assert {name: value.shape for name, value in drupe.load(tmp_path / "m.safetensors").items()} == {
        "embedding_user.weight": (7, 5),
        "embedding_item.weight": (9, 5),
    }
    other.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(other.weight.detach().numpy(), model.weight.detach().numpy())
    with pytest.raises(ValueError, match=r"embedding_item.weight: shape is \(8, 5\), expected \(9, 5\)"):
        other.load_state_dict(model.state_dict() | {"embedding_item.weight": np.zeros((8, 5), np.float32)})


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16"])
def test_other_dtypes(device, rng, name):
    users, items = draw(rng)
    expected = make(users, items)([1, 2], [3, 4]).detach().numpy()
    model = make(users, items).astype(name)
    scores = model(np.array([1, 2]), np.array([3, 4])).astype("float32").detach().numpy()
    np.testing.assert_allclose(scores, expected, rtol=0.05, atol=0.01)


def test_errors(device, rng):
    users, items = draw(rng)
    model = make(users, items)
    for config in ({"users": 0}, {"items": 0}, {"embedding_size": 0}, {"layers": -1}, {"l2": -1.0}):
        with pytest.raises(ValueError, match=r"\[LightGCNConfig\]"):
            make(users, items, **config)
    with pytest.raises(IndexError, match=r"users holds 7: expected \[0, 7\)"):
        model([7], [0])
    with pytest.raises(IndexError, match=r"items holds -1: expected \[0, 9\)"):
        model([0], [0], [-1])
    with pytest.raises(IndexError, match=r"items holds 9"):
        make(users, items + 2)
    with pytest.raises(ValueError, match="there are 2 users and 1 items"):
        model([0, 1], [0])
    with pytest.raises(TypeError, match="users is float64"):
        model([0.5], [0])
    with pytest.raises(ValueError, match="k is 10: expected 1 to 9"):
        model.recommend([0], 10)


def test_others_are_not_taken(rng):
    users, items = draw(rng, 60)
    data = Interactions(users, items, 9)
    taken = set(zip(users.tolist(), items.tolist(), strict=True))
    (same_users, same_items, others), targets = data.sample(np.random.default_rng(0))
    np.testing.assert_array_equal(same_users, users)
    np.testing.assert_array_equal(same_items, items)
    assert len(data) == 60
    assert targets.tolist() == [1] * 60
    assert not taken & set(zip(users.tolist(), others.tolist(), strict=True))
    assert set(others.tolist()) <= set(range(9))
    np.testing.assert_array_equal(data.sample(np.random.default_rng(0))[0][2], others)


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        ([], [], "not empty"),
        ([0, 1], [0], "the same length"),
        ([-1], [0], "users from 0"),
        ([0], [3], r"items in \[0, 3\)"),
        ([1, 1, 1], [0, 1, 2], "user 1 took all 3 items"),
    ],
)
def test_errors_of_interactions(users, items, message):
    with pytest.raises(ValueError, match=message):
        Interactions(users, items, 3)
