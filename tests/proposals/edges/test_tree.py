"""Trees on structured labels: what is split, where, and what a leaf says."""

import numpy as np

from proposals.edges.training.tree import GrownTree, grow


def patches(rng: np.random.Generator, count: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and kinds: patches of one segment (0), cut down the middle (1) or across (2). Feature 3 tells 0 from the rest,
    feature 5 tells 1 from 2; the others are noise."""
    kinds = rng.integers(0, 3, count)
    labels = np.zeros((count, 16, 16), np.uint8)
    labels[kinds == 1, :, 8:] = 1
    labels[kinds == 2, 8:] = 1
    features = rng.integers(0, 256, (7, count), dtype=np.uint8)
    features[3] = np.where(kinds == 0, rng.integers(0, 100, count), rng.integers(120, 256, count))
    features[5] = np.where(kinds == 1, rng.integers(0, 50, count), rng.integers(90, 256, count))
    return features, labels.reshape(count, -1), kinds


def leaf_of(tree: GrownTree, features: np.ndarray) -> int:
    node = 0
    while tree.child[node]:
        node = tree.child[node] - int(features[tree.feature[node]] <= tree.split[node])
    return node


def test_examples_go_to_a_leaf_whose_label_is_theirs(rng):
    features, labels, kinds = patches(rng)
    tree = grow(features, labels, seed=1, min_child=5)
    leaves = [leaf_of(tree, features[:, i]) for i in range(len(kinds))]
    assert [kinds[tree.example[leaf]] for leaf in leaves] == kinds.tolist()
    asked = set(tree.feature[tree.child > 0].tolist())
    assert asked == {3, 5}


def test_a_tree_of_like_labels_is_one_leaf(rng):
    features, labels, _ = patches(rng)
    tree = grow(features, np.zeros_like(labels), seed=1)
    assert tree.child.tolist() == [0]


def test_no_leaf_is_smaller_than_asked_nor_deeper(rng):
    features, labels, kinds = patches(rng)
    labels = rng.integers(0, 3, labels.shape, dtype=np.uint8)  # nothing to learn, so it is split as far as it may be
    tree = grow(features, labels, seed=1, min_child=20, max_depth=3)
    leaves = np.array([leaf_of(tree, features[:, i]) for i in range(len(kinds))])
    assert np.bincount(leaves)[np.unique(leaves)].min() >= 20
    assert 3 <= len(np.unique(leaves)) <= 8


def test_children_follow_their_parents(rng):
    features, labels, _ = patches(rng)
    tree = grow(features, labels, seed=1)
    inner = np.flatnonzero(tree.child)
    assert (tree.child[inner] > inner + 1).all() and tree.child.max() < len(tree.child)


def test_a_seed_gives_the_same_tree(rng):
    features, labels, _ = patches(rng)
    labels = rng.integers(0, 3, labels.shape, dtype=np.uint8)
    one, same, other = (grow(features, labels, seed=seed, min_child=20) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
