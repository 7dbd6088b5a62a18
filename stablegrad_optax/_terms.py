"""The gradient of each term of a loss, and what there is to see of them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from stablegrad_optax import _layers, _scale
from stablegrad_optax._scale import AxisName


def value_and_grad_of_terms(
    losses: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""Like ``jax.value_and_grad``, for the terms of a loss, each by itself.

    One forward pass, and for each term a backward pass over what it depends on. So
    terms on points of their own cost together what the gradient of their sum costs;
    terms on the same points cost a backward pass each.

    Args:
      losses: ``losses(params, *args, **kwargs)`` returns a pytree of real scalars, such
        as ``{"residual": ..., "boundary": ...}``, or ``(that, aux)`` with ``has_aux``.
      has_aux: whether ``losses`` returns auxiliary data, such as batch statistics.

    Returns:
      A function ``f(params, *args, **kwargs) -> (values, grads)``, or ``((values, aux),
      grads)`` with ``has_aux``. The gradients are the pytree of the values with a
      gradient like ``params`` in the place of each scalar, as from ``jax.jacrev``.

    Raises:
      ValueError: when called, if a term is not a real floating-point scalar, or there
        is none.
      TypeError: when called, if a leaf of ``params`` is not a floating-point or complex
        array, or there is none.

    Example:
      >>> import jax.numpy as jnp
      >>> def losses(w, x, y):
      ...     return {"data": jnp.mean((w * x - y) ** 2), "decay": jnp.sum(w**2)}
      >>> values, grads = value_and_grad_of_terms(losses)(
      ...     jnp.array([1., 2.]), jnp.array([1., 1.]), jnp.array([0., 0.])
      ... )
      >>> print(values["data"], values["decay"])
      2.5 5.0
      >>> print(grads["data"], grads["decay"])
      [1. 2.] [2. 4.]
    """

    def value_and_grad(params, *args, **kwargs):
        check_differentiable(params)

        def of_params(params):
            found = losses(params, *args, **kwargs)
            values, aux = found if has_aux else (found, None)
            named = jax.tree_util.tree_leaves_with_path(values)
            if not named:
                raise ValueError("losses must return one term or more, got none.")
            hint = " A loss that returns (terms, aux) needs has_aux=True."
            for path, value in named:
                name = _layers.path_name(path)
                check_scalar(value, f"term {name!r} of losses", "" if has_aux else hint)
            return values, aux

        values, linear, aux = jax.linearize(of_params, params, has_aux=True)
        terms, structure = jax.tree.flatten(values)
        leaves, like_params = jax.tree.flatten(params)
        # Traced once for all terms, and cut down to what each depends on: transposed
        # alone, a term takes no part in the backward passes of others.
        jaxpr = jax.make_jaxpr(linear)(params)

        grads = []
        for k, value in enumerate(terms):
            is_used = [i == k for i in range(len(terms))]
            of_term, _ = dce_jaxpr(jaxpr.jaxpr, is_used, instantiate=True)
            push_forward = jaxpr_as_fun(ClosedJaxpr(of_term, jaxpr.consts))
            pull_back = jax.linear_transpose(push_forward, *leaves)
            grads.append(
                jax.tree.unflatten(like_params, pull_back([jnp.ones_like(value)]))
            )
        values = (values, aux) if has_aux else values
        return values, jax.tree.unflatten(structure, grads)

    return value_and_grad


def term_scales(grads: Any, *, axis_name: AxisName | None = None) -> Any:
    r"""The scale :math:`s_k` of each term: the rms of its gradient over its whole tree.

    Args:
      grads: a dict, list or tuple of gradients, from :func:`value_and_grad_of_terms`.
      axis_name: as for :func:`stablegrad`. Where each device has its own batch, average
        the gradients over the devices first.

    Returns:
      ``grads`` with a scalar in the place of each gradient: float32 or, if a leaf is
      float64 or complex128, float64; NaN where an element is NaN.

    Raises:
      ValueError: if the gradient of a term has no floating-point element, or holds
        Flax's ``_overwrite_with_gradient``, which is none.

    Example:
      >>> import jax.numpy as jnp
      >>> grads = {
      ...     "data": {"w": jnp.array([3., -3., 3.]), "b": jnp.array(3.)},
      ...     "decay": {"w": jnp.array([0., 0., 0.]), "b": jnp.array(4.)},
      ... }
      >>> scales = term_scales(grads)
      >>> print(scales["data"], scales["decay"])
      3.0 2.0
    """

    def scale(term):
        return _scale.scale(_leaves(term), "rms", axis_name)

    return jax.tree.map(scale, grads, is_leaf=lambda node: node is not grads)


def term_alignment(grads: Any, *, axis_name: AxisName | None = None) -> jax.Array:
    r"""The cosines between the gradients of the terms.

    .. math::

        \cos_{kl} = \frac{\operatorname{Re} \langle g_k, g_l \rangle}
                         {\lVert g_k \rVert \, \lVert g_l \rVert}

    Negative where two terms are in conflict: a small step down one leads up the other.

    Args:
      grads, axis_name: as for :func:`term_scales`.

    Returns:
      A symmetric matrix of shape (K, K) in the dtype of :func:`term_scales`, the terms
      in the order of ``jax.tree.leaves``: of a dict, sorted by name. 0 where one of the
      two gradients is zero.

    Raises:
      ValueError: as :func:`term_scales`.

    Example:
      >>> import jax.numpy as jnp
      >>> grads = [jnp.array([3e-9, 4e-9]), jnp.array([-3., -4.]), jnp.array([4., -3.])]
      >>> print(term_alignment(grads).round(3) + 0)
      [[ 1. -1.  0.]
       [-1.  1.  0.]
       [ 0.  0.  1.]]
    """
    terms = jax.tree.leaves(grads, is_leaf=lambda node: node is not grads)

    def products(*of_terms):
        x = jnp.stack(_scale.in_accumulation_dtype(of_terms))
        # As a sum, and not as a matrix product, it takes leaves as they are sharded.
        return sum(
            jnp.sum(part[:, None] * part[None], range(2, part.ndim + 1))
            for part in _scale.parts(x)
        )

    inner = functools.reduce(lax.add, map(products, *map(_leaves, terms)))
    if axis_name is not None:
        inner = lax.psum(inner, axis_name)
    # A term of zeros has zeros in its row.
    squares = jnp.diag(inner)
    norms = jnp.sqrt(jnp.where(squares == 0, 1, squares))
    return jnp.clip(inner / jnp.outer(norms, norms), -1, 1)


def _leaves(grads: Any) -> list[jax.Array]:
    """The leaves of a term's gradient."""
    for path, _ in jax.tree_util.tree_leaves_with_path(grads):
        name = _layers.path_name(path)
        if "_overwrite_with_gradient" in name:
            raise ValueError(
                f"leaf {name!r} is a new value and no gradient (Flax's FP8 state): "
                "take it out, and put it into the parameters yourself."
            )
    return _layers.inexact_leaves(grads, "the gradient of a term")


def check_differentiable(params: Any) -> None:
    """Raises TypeError unless all leaves are floating-point or complex arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise TypeError(f"params must hold arrays, got {params!r}.")
    for path, leaf in leaves:
        if not _layers.is_inexact(leaf):
            kind = _layers.dtype_of(leaf) or repr(leaf)
            raise TypeError(
                f"params must be floating-point or complex arrays, got {kind} in leaf "
                f"{_layers.path_name(path)!r}."
            )


def check_scalar(value: Any, what: str, hint: str = "") -> None:
    """Raises ValueError unless it is a real floating-point scalar."""
    dtype = _layers.dtype_of(value)
    is_real = dtype is not None and jnp.issubdtype(dtype, np.floating)
    if not is_real or np.shape(value) != ():
        kind = repr(value) if dtype is None else f"{dtype}{list(np.shape(value))}"
        raise ValueError(f"{what} must be a floating-point scalar, got {kind}.{hint}")
