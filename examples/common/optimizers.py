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
    match name:
        case "stablegrad" | "stablegrad-prediction":
            return sg.stablegrad(stack_axis=stack_axis, **stablegrad_options)
        case "none":
            control = optax.identity()
        case "clip":
            control = optax.clip_by_global_norm(1.0)
        case "agc":
            control = by_layer(optax.adaptive_grad_clip(0.01), stack_axis)
        case "normalize":
            control = optax.normalize_by_update_norm()
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

    def matrix_axes(path, leaf):
        """The axes of a weight, its stack axis not counted; None for other leaves."""
        axes = [i for i in range(leaf.ndim) if i != stack_axis(path, leaf)]
        return axes if len(axes) > 1 else None

    def weights(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: matrix_axes(path, leaf) is not None, params
        )

    def matrices(params):
        """What muon takes for matrices: weights, kernels of convolutions included."""

        def dimensions(path, leaf):
            axes = matrix_axes(path, leaf)
            if axes is not None:
                return optax.contrib.MuonDimensionNumbers(tuple(axes[:-1]), axes[-1])

        return jax.tree_util.tree_map_with_path(dimensions, params)

    match name:
        case "sgd":
            sgd = optax.sgd(learning_rate, momentum=0.9)
            if not weight_decay:
                return sgd
            return optax.chain(optax.add_decayed_weights(weight_decay, weights), sgd)
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
            if axis is None:
                return transform(update, param)
            return jax.vmap(transform, in_axes=axis, out_axes=axis)(update, param)

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(transformation.init, update_fn)
