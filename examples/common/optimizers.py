"""Base optimizers, and what controls the scale of the gradient before them."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

import stablegrad_optax as sg

Base = Literal["sgd", "adam", "adamw", "lion", "muon"]
ScaleControl = Literal[
    "none", "stablegrad", "stablegrad-prediction", "clip", "agc", "normalize"
]
StackAxis = Callable[[tuple[Any, ...], Any], int | None]


def scale_control(
    name: ScaleControl, stack_axis: StackAxis, **stablegrad_options: Any
) -> optax.GradientTransformationExtraArgs:
    """The transformation before the base optimizer.

    "stablegrad-prediction" is the same transformation as "stablegrad"; the training
    step passes it the scale of the prediction gradient as `reference`.
    """
    if name.startswith("stablegrad"):
        return sg.stablegrad(stack_axis=stack_axis, **stablegrad_options)
    control = {
        "none": optax.identity(),
        "clip": optax.clip_by_global_norm(1.0),
        "agc": by_layer(optax.adaptive_grad_clip(0.01), stack_axis),
        "normalize": optax.normalize_by_update_norm(),
    }[name]
    return optax.with_extra_args_support(control)


def base(
    name: Base,
    learning_rate: optax.ScalarOrSchedule,
    stack_axis: StackAxis,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """A base optimizer with its usual settings.

    Weights decay; biases and scales do not. The decay is decoupled for adamw, lion and
    muon. That of sgd passes through its momentum, and adam has none.
    """

    def matrix(path, leaf):
        """A weight as a matrix, also if it is a kernel of a convolution, or None."""
        axes = [i for i in range(leaf.ndim) if i != stack_axis(path, leaf)]
        if len(axes) > 1:
            return optax.contrib.MuonDimensionNumbers(tuple(axes[:-1]), axes[-1])

    def matrices(params):
        return jax.tree_util.tree_map_with_path(matrix, params)

    def weights(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: matrix(path, leaf) is not None, params
        )

    match name:
        case "sgd":
            decay = optax.add_decayed_weights(weight_decay, weights)
            sgd = optax.sgd(learning_rate, momentum=0.9)
            return optax.chain(decay, sgd) if weight_decay else sgd
        case "adam":
            return optax.adam(learning_rate)
        case "adamw":
            return optax.adamw(learning_rate, weight_decay=weight_decay, mask=weights)
        case "lion":
            return optax.lion(learning_rate, weight_decay=weight_decay, mask=weights)
        case "muon":
            return optax.contrib.muon(
                learning_rate,
                weight_decay=weight_decay,
                muon_weight_dimension_numbers=matrices,
            )


def by_layer(
    transformation: optax.GradientTransformation, stack_axis: StackAxis
) -> optax.GradientTransformation:
    """Applies a stateless, leafwise transformation to each slice of a stacked leaf."""

    def update_fn(updates, state, params=None):
        def one(path, update, param):
            def transform(update, param):
                return transformation.update(update, state, param)[0]

            axis = stack_axis(path, update)
            mapped = transform if axis is None else jax.vmap(transform, axis, axis)
            return mapped(update, param)

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(transformation.init, update_fn)
