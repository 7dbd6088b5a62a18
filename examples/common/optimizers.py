"""Base optimizers and what controls the scale of the gradient in front of them."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

import stablegrad_optax as sg
from examples.common.runs import RunError

Base = Literal["sgd", "adam", "adamw", "lion", "muon"]
ScaleControl = Literal[
    "none", "stablegrad", "stablegrad-prediction", "clip", "agc", "normalize"
]
StackAxis = Callable[[tuple[Any, ...], Any], int | None]


def scale_control(
    name: ScaleControl, stack_axis: StackAxis, **stablegrad_options: Any
) -> optax.GradientTransformationExtraArgs:
    """What stands in front of the base optimizer.

    "stablegrad-prediction" is the same transformation as "stablegrad"; the training
    step hands it the scale of the prediction gradient as `reference`.
    """
    if name in ("stablegrad", "stablegrad-prediction"):
        return sg.stablegrad(stack_axis=stack_axis, **stablegrad_options)
    transformation = {
        "none": optax.identity,
        "clip": lambda: optax.clip_by_global_norm(1.0),
        "agc": lambda: by_layer(optax.adaptive_grad_clip(0.01), stack_axis),
        "normalize": optax.normalize_by_update_norm,
    }[name]()
    return optax.with_extra_args_support(transformation)


def base(
    name: Base,
    learning_rate: optax.ScalarOrSchedule,
    stack_axis: StackAxis,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """A base optimizer with the settings that people use it with.

    Weights decay and biases and scales do not. The decay is decoupled for adamw, lion
    and muon; that of sgd goes through its momentum; adam has none.
    """

    def weights(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: len(_axes(path, leaf, stack_axis)) > 1, params
        )

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
            if not hasattr(optax.contrib, "MuonDimensionNumbers"):
                raise RunError(
                    "--optimizer muon needs optax 0.2.6 or newer for stacked layers, "
                    f"this is {optax.__version__}."
                )
            return optax.contrib.muon(
                learning_rate,
                weight_decay=weight_decay,
                muon_weight_dimension_numbers=lambda params: _matrices(
                    params, stack_axis
                ),
            )


def by_layer(
    transformation: optax.GradientTransformation, stack_axis: StackAxis
) -> optax.GradientTransformation:
    """Applies a stateless, leafwise transformation to each slice of a stacked leaf."""

    def init_fn(params):
        return transformation.init(params)

    def update_fn(updates, state, params=None):
        def one(path, update, param):
            axis = stack_axis(path, update)

            def transform(update, param):
                return transformation.update(update, state, param)[0]

            if axis is None:
                return transform(update, param)
            return jax.vmap(transform, in_axes=axis, out_axes=axis)(update, param)

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(init_fn, update_fn)


def _axes(path: tuple[Any, ...], leaf: jax.Array, stack_axis: StackAxis) -> list[int]:
    """The axes of a leaf beside its stack axis: two or more for weights."""
    stacked = stack_axis(path, leaf)
    return [axis for axis in range(leaf.ndim) if axis != stacked]


def _matrices(params: Any, stack_axis: StackAxis) -> Any:
    """What muon takes for matrices: weights, kernels of convolutions too."""

    def dimensions(path, leaf):
        axes = _axes(path, leaf, stack_axis)
        if len(axes) < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(axes[:-1]), axes[-1])

    return jax.tree_util.tree_map_with_path(dimensions, params)
