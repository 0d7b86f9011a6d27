"""A trained model as initial weights for other classes: class scores are taken over by class name, everything else as it is."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deconvnet.models.network import Network
from infra.errors import UserError


def load_trained_weights(
    model: Network, state: Mapping[str, Tensor], old_classes: Sequence[str], new_classes: Sequence[str], convention: str
) -> tuple[str, ...]:
    """Load a trained model's weights into a network, in place.

    Args:
        model: network of `new_classes`.
        state: state_dict of the trained model.
        old_classes: the trained model's class names by id.
        new_classes: class names by id.
        convention: input convention of the trained model.

    Returns:
        The classes whose scores were taken over.

    Raises:
        UserError: if the trained model has another architecture, width, input size or input convention.
    """
    if convention != model.convention:
        raise UserError(
            f"the weights to start from expect {convention} input and the model is built for {model.convention}: "
            f"set model.convention to {convention}"
        )
    model.load_state_dict(map_classes(model, state, old_classes, new_classes))
    return tuple(name for name in new_classes if name in old_classes)


def map_classes(
    model: Network, state: Mapping[str, Tensor], old_classes: Sequence[str], new_classes: Sequence[str]
) -> dict[str, Tensor]:
    """Make a state_dict for a network of new classes from that of one of old classes.

    Tensors that depend on the classes (the score layers, FCN-8s's upsampling) are taken over for the classes that both have; new
    classes keep the network's own values. All other tensors are taken over whole.

    Args:
        model: network of `new_classes`.
        state: state_dict of a network of `old_classes`.
        old_classes: class names by id.
        new_classes: class names by id.

    Returns:
        A state_dict for `model`.

    Raises:
        UserError: if `state` is of another architecture, width or input size.
    """
    own = model.state_dict()
    if differing := sorted(own.keys() ^ state.keys()):
        raise UserError(
            f"the weights to start from are of another architecture than {model.architecture}: {differing[0]} differs"
        )
    shared = [name for name in new_classes if name in old_classes]
    old = torch.tensor([old_classes.index(name) for name in shared], dtype=torch.long)
    new = torch.tensor([new_classes.index(name) for name in shared], dtype=torch.long)
    mapped = {}
    for name, value in own.items():
        by_class = _class_dimensions(name)
        expected = tuple(len(old_classes) if d in by_class else size for d, size in enumerate(value.shape))
        if tuple(state[name].shape) != expected:
            raise UserError(f"the weights to start from don't fit: {name} is {tuple(state[name].shape)}, not {expected}")
        if by_class:
            mapped[name] = value.detach().cpu().clone()
            mapped[name][_index(new, by_class)] = state[name].cpu()[_index(old, by_class)]
        else:
            mapped[name] = state[name]
    return mapped


def _class_dimensions(name: str) -> tuple[int, ...]:
    """Return the dimensions of a tensor that run over classes: a score layer's output; input and output of upsampling."""
    return (0,) if name.startswith("score") else (0, 1) if name.startswith("up_") else ()


def _index(classes: Tensor, dimensions: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Make the index that selects `classes` along each of one or two leading dimensions."""
    return (classes,) if len(dimensions) == 1 else (classes[:, None], classes[None, :])
