"""Growing trees: which features are split, and which label represents a leaf."""

import numpy as np

from proposals.edges.training.tree import GrownTree, grow


def patches(rng: np.random.Generator, count: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and kinds of patches: one segment (0), two side by side (1), or one above the other (2).

    Feature 3 separates kind 0 from the others, feature 5 kind 1 from kind 2; the other features are noise.
    """
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


def test_examples_reach_a_leaf_with_their_label(rng):
    features, labels, kinds = patches(rng)
    tree = grow(features, labels, seed=1, min_child=5)
    leaves = [leaf_of(tree, features[:, i]) for i in range(len(kinds))]
    assert [kinds[tree.example[leaf]] for leaf in leaves] == kinds.tolist()
    used = set(tree.feature[tree.child > 0].tolist())
    assert used == {3, 5}


def test_the_example_of_a_large_node_is_the_patch_nearest_to_the_mean():
    """Of which only every fourth patch is looked at."""
    labels = np.zeros((10_000, 256), np.uint8)
    labels[:100, 128:] = 1
    tree = grow(np.zeros((1, 10_000), np.uint8), labels, seed=1, max_depth=0)
    assert tree.child.tolist() == [0] and not labels[tree.example[0]].any()


def test_a_tree_of_equal_labels_is_one_leaf(rng):
    features, labels, _ = patches(rng)
    tree = grow(features, np.zeros_like(labels), seed=1)
    assert tree.child.tolist() == [0]


def test_leaves_respect_min_child_and_max_depth(rng):
    features, labels, kinds = patches(rng)
    labels = rng.integers(0, 3, labels.shape, dtype=np.uint8)  # noise, so nodes are split as far as allowed
    tree = grow(features, labels, seed=1, min_child=20, max_depth=3)
    leaves = np.array([leaf_of(tree, features[:, i]) for i in range(len(kinds))])
    assert np.bincount(leaves)[np.unique(leaves)].min() >= 20
    assert 3 <= len(np.unique(leaves)) <= 8


def test_children_follow_their_parents(rng):
    features, labels, _ = patches(rng)
    tree = grow(features, labels, seed=1)
    inner = np.flatnonzero(tree.child)
    assert (tree.child[inner] > inner + 1).all() and tree.child.max() < len(tree.child)


def test_the_same_seed_gives_the_same_tree(rng):
    features, labels, _ = patches(rng)
    labels = rng.integers(0, 3, labels.shape, dtype=np.uint8)
    one, same, other = (grow(features, labels, seed=seed, min_child=20) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
