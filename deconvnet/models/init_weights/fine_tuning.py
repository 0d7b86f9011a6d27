"""Fine-tuning: initial weights from a model that was trained for other classes.

The weights of the class scores are taken over for classes with the same name. All other weights are taken over unchanged.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deconvnet.models.network import Network
from infra.errors import UserError


def load_trained_weights(
    model: Network, state: Mapping[str, Tensor], old_classes: Sequence[str], new_classes: Sequence[str], convention: str
) -> tuple[str, ...]:
    """Load the weights of a trained model into a network. The network is changed in place.

    Weights that belong to classes are taken over for classes with the same name in both. All other weights are taken over
    unchanged.

    Args:
        model: a network for the classes `new_classes`.
        state: state_dict of the trained model.
        old_classes: the trained model's class names by class id.
        new_classes: the network's class names by class id.
        convention: format of the input pixels of the trained model, "caffe" or "torchvision".

    Returns:
        Names of the classes whose score weights were taken over.

    Raises:
        UserError: if the trained model has another architecture, width, input size or format of the input pixels.
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
    """Convert the state_dict of a network for old classes to a state_dict for new classes.

    The weights of the score layers and of FCN-8s's upsampling layers depend on the classes. They are taken over for classes
    that are both old and new. For other new classes, the network's current weights are kept. All other tensors are taken over
    unchanged.

    Args:
        model: a network for the classes `new_classes`; not changed.
        state: state_dict of a network for the classes `old_classes`.
        old_classes: class names by class id, before the conversion.
        new_classes: class names by class id, after the conversion.

    Returns:
        A state_dict that fits `model`.

    Raises:
        UserError: if `state` belongs to another architecture, width or input size.
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
    """Return which dimensions of a tensor of the state_dict are indexed by class.

    Args:
        name: name of the tensor in the state_dict.

    Returns:
        (0,) for a score layer, whose output channels are classes. (0, 1) for an upsampling layer, whose input and output
        channels are classes. () for any other tensor.
    """
    return (0,) if name.startswith("score") else (0, 1) if name.startswith("up_") else ()


def _index(classes: Tensor, dimensions: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Make an index that selects some classes in a tensor, in all dimensions that stand for classes.

    Args:
        classes: int64 tensor of class ids.
        dimensions: dimensions that are indexed by class: (0,) for a score layer, (0, 1) for an upsampling layer.

    Returns:
        A tuple of index tensors, one for each of these dimensions. `tensor[index]` is the selected part, and can be assigned
        to.
    """
    return (classes,) if len(dimensions) == 1 else (classes[:, None], classes[None, :])
