"""The reference scale: the standard deviation of the prediction gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stablegrad_optax import _layers, _scale
from stablegrad_optax._scale import AxisName
from stablegrad_optax._terms import check_differentiable, check_scalar


def reference_scale(
    prediction_grads: Any, *, axis_name: AxisName | None = None
) -> jax.Array:
    r"""The standard deviation over all elements of a pytree.

    With the gradient of the loss with respect to the predictions this is the paper's
    reference :math:`\rho = \operatorname{std}(\partial\ell / \partial\hat y)`.

    Args:
      prediction_grads: a pytree of floating-point or complex arrays; other leaves are
        left out.
      axis_name: as for :func:`stablegrad`: it is taken over all devices, which is not
        the average of their own ones.

    Returns:
      A scalar, float32 or, if a leaf is float64 or complex128, float64. As for a layer
      it is at least a sixteenth of the rms, and the magnitude of a single element.

    Raises:
      ValueError: if the tree holds no floating-point element.

    Example:
      >>> import jax.numpy as jnp
      >>> fields = {"u": jnp.array([1., 3.]), "v": jnp.array([[1., 3.]])}
      >>> print(f"{reference_scale(fields):.2f}")
      1.00
    """
    leaves = _layers.inexact_leaves(prediction_grads, "prediction_grads")
    return _scale.scale(leaves, axis_name=axis_name)


def value_and_grad_with_reference(
    predict: Callable[..., Any],
    loss: Callable[..., Any],
    *,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
) -> Callable[..., Any]:
    r"""Like ``jax.value_and_grad`` of ``loss(predict(...))``, with the reference scale.

    One forward and one backward pass: the prediction gradient is on its way to the
    parameters anyway.

    Args:
      predict: ``predict(params, *args, **kwargs) -> predictions``, any pytree of
        arrays, or ``(predictions, aux)`` with ``has_aux``.
      loss: ``loss(predictions, *args, **kwargs) -> scalar``.
      has_aux: whether ``predict`` returns auxiliary data, such as batch statistics.
      axis_name: as for :func:`reference_scale`. Value and gradient are those of the
        loss as it is on each device.

    Returns:
      A function ``f(params, *args, **kwargs) -> (value, grads, reference)``, or
      ``((value, aux), grads, reference)`` with ``has_aux``. The reference is
      :func:`reference_scale` of the gradient with respect to the predictions.

    Raises:
      ValueError: when called, if the loss is not a real floating-point scalar.
      TypeError: as for :func:`value_and_grad_of_terms`.

    Example:
      >>> import jax.numpy as jnp
      >>> def predict(params, x, y):
      ...     return params["w"] * x
      >>> def loss(predictions, x, y):
      ...     return 0.5 * jnp.sum((predictions - y) ** 2)
      >>> f = value_and_grad_with_reference(predict, loss)
      >>> x, y = jnp.array([1., 2.]), jnp.array([1., 0.])
      >>> value, grads, reference = f({"w": jnp.array(2.)}, x, y)
      >>> print(f"{value} {grads['w']} {reference:.2f}")  # prediction gradient: [1, 4]
      8.5 9.0 1.50
    """

    def value_and_grad(params, *args, **kwargs):
        check_differentiable(params)

        def of_params(params):
            found = predict(params, *args, **kwargs)
            return found if has_aux else (found, None)

        def of_predictions(predictions):
            value = loss(predictions, *args, **kwargs)
            check_scalar(value, "the value of loss")
            return value

        predictions, pull_back, aux = jax.vjp(of_params, params, has_aux=True)
        value, loss_pull_back = jax.vjp(of_predictions, predictions)
        (prediction_grads,) = loss_pull_back(jnp.ones_like(value))
        (grads,) = pull_back(prediction_grads)
        value = (value, aux) if has_aux else value
        return value, grads, reference_scale(prediction_grads, axis_name=axis_name)

    return value_and_grad
