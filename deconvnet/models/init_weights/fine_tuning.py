"""Fine-tuning: initial weights from a model that was trained for other classes.

Weights that belong to a class are copied if both models have a class of this name. All other weights are copied unchanged.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from deconvnet.models.network import Network
from infra.errors import UserError


def load_trained_weights(
    model: Network, state: Mapping[str, Tensor], old_classes: Sequence[str], new_classes: Sequence[str], convention: str
) -> tuple[str, ...]:
    """Load the weights of a trained model into a network. The network is changed in place.

    The score layers (which compute the scores of the classes) and FCN-8s's upsampling layers have separate weights for each
    class. These weights are copied for classes that both models have. For the other classes of the network, its current weights
    are kept. The weights of all other layers are copied unchanged.

    Args:
        model: a network for the classes `new_classes`.
        state: state_dict of the trained model.
        old_classes: the trained model's class names by class id.
        new_classes: the network's class names by class id.
        convention: format of the input pixels of the trained model, "caffe" or "torchvision".

    Returns:
        Names of the classes whose weights were copied.

    Raises:
        UserError: if the trained model has another architecture, width or format of the input pixels. For DeconvNet, also if
            it has another input size.
    """
    if convention != model.convention:
        raise UserError(
            f"the weights to start from expect {convention} input and the model is built for {model.convention}: "
            f"set model.convention to {convention}"
        )
    own = model.state_dict()
    if differing := sorted(own.keys() ^ state.keys()):
        raise UserError(
            f"the weights to start from are of another architecture than {model.architecture}: {differing[0]} differs"
        )
    shared = tuple(name for name in new_classes if name in old_classes)
    old, new = (np.array([classes.index(name) for name in shared], np.intp) for classes in (old_classes, new_classes))
    mapped = {}
    for name, value in own.items():
        by_class = _class_dimensions(name)
        expected = tuple(len(old_classes) if d in by_class else size for d, size in enumerate(value.shape))
        if tuple(state[name].shape) != expected:
            raise UserError(f"the weights to start from don't fit: {name} is {tuple(state[name].shape)}, not {expected}")
        mapped[name] = state[name]
        if by_class:
            mapped[name] = value.detach().cpu().clone()
            mapped[name][np.ix_(*[new] * len(by_class))] = state[name].cpu()[np.ix_(*[old] * len(by_class))]
    model.load_state_dict(mapped)
    return shared


def _class_dimensions(name: str) -> tuple[int, ...]:
    """Return which dimensions of a tensor of the state_dict are indexed by class.

    Args:
        name: name of the tensor in the state_dict.

    Returns:
        (0,) for a score layer, whose output channels are classes. (0, 1) for an upsampling layer, whose input and output
        channels are classes. () for any other tensor.
    """
    return (0,) if name.startswith("score") else (0, 1) if name.startswith("up_") else ()
