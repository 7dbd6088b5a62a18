r"""The second scale of a gradient: that of each term of a loss.

The gradients of K terms are stacked, a leading axis on each leaf. A term is then one
slice of a stacked group that holds the whole tree, and its scale one that `_scale`
knows how to take.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from stablegrad_optax import _checks, _layers, _scale
from stablegrad_optax._scale import AxisName, Slices


def value_and_grad_of_terms(
    losses: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""Like ``jax.value_and_grad``, for the terms of a loss, each by itself.

    The forward pass is computed once, and each term is then differentiated by a
    backward pass over what it depends on. So terms on points of their own cost together
    what the gradient of their sum costs; terms on the same points cost a backward pass
    each. Sum those first that should be one term.

    Args:
      losses: ``losses(params, *args)`` returns a pytree of K real floating-point
        scalars, such as ``{"residual": ..., "boundary": ...}``, or ``(that, aux)`` with
        ``has_aux``.
      has_aux: whether ``losses`` returns auxiliary data, such as batch statistics.

    Returns:
      A function ``f(params, *args) -> (values, grads)``, or ``((values, aux), grads)``
      with ``has_aux``. The values are what ``losses`` returns. The gradients are like
      ``params``, with a leading axis of K terms on each leaf, in the order of
      ``jax.tree.leaves(values)``: the layout of ``jax.jacrev``, and of optax's
      per-example gradients.

    Raises:
      ValueError: when called, if there is no term, or, with its name, if one is not a
        real floating-point scalar.
      TypeError: when called, with its path, if a leaf of ``params`` is not a
        floating-point or complex array.

    Example:
      >>> import jax.numpy as jnp
      >>> def losses(w, x, y):
      ...     return {"data": jnp.mean((w * x - y) ** 2), "decay": jnp.sum(w**2)}
      >>> values, grads = value_and_grad_of_terms(losses)(
      ...     jnp.array([1., 2.]), jnp.array([1., 1.]), jnp.array([0., 0.])
      ... )
      >>> print(values["data"], values["decay"])
      2.5 5.0
      >>> print(grads)
      [[1. 2.]
       [2. 4.]]
    """

    def value_and_grad(params, *args):
        _check_differentiable(params)

        def of_params(params):
            found = losses(params, *args)
            return found if has_aux else (found, None)

        values, linear, aux = jax.linearize(of_params, params, has_aux=True)
        _check_terms(values)
        grads: list[Any] = []
        for k, value in enumerate(jax.tree.leaves(values)):
            # Transposed alone, a term takes no part in the backward passes of others.
            pull_back = jax.linear_transpose(
                lambda tangent, k=k: jax.tree.leaves(linear(tangent))[k], params
            )
            grads.append(*pull_back(jnp.ones_like(value)))
        stacked = jax.tree.map(lambda *terms: jnp.stack(terms), *grads)
        return ((values, aux) if has_aux else values), stacked

    return value_and_grad


def balance_terms(
    grads: Any,
    weights: Any = None,
    *,
    max_ratio: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Any:
    r"""The sum of the terms' gradients, each brought to the same scale.

    .. math::

        \hat g = \sum_k \frac{w_k}{\sigma_k} g_k, \qquad
        \sigma_k = \operatorname{rms}(g_k)

    with the root mean square over all elements of the tree. A factor in front of a term
    of the loss has no effect, so there are no loss weights to tune.

    It goes between the gradient and the optimizer, whichever that is, as a function and
    not a transformation: in a chain it would change the shapes of the updates, which
    wrappers such as ``optax.apply_if_finite`` do not allow. The result does not become
    small when the terms do, so let the learning rate decay.

    Args:
      grads: a pytree with a leading axis of K terms on each leaf, from
        :func:`value_and_grad_of_terms`.
      weights: :math:`w_k`, the importance of each term relative to the others once they
        are balanced: a pytree of K scalars that are not negative, in the structure of
        the values. Default: 1 for each.
      max_ratio: a bound on :math:`1/\sigma_k` relative to the smallest of them among
        the terms that are not zero, 1 or more. It keeps a term whose gradient is next
        to nothing from being raised to the scale of the others.
      axis_name: name or names of the mesh axes over which every leaf is sharded, for
        use inside ``jax.shard_map`` or ``jax.pmap``. Not needed under ``jax.jit`` with
        sharded arrays. Where each device has its own batch, average the gradients over
        the devices first.

    Returns:
      Gradients without the leading axis, in the dtypes of ``grads``. Leaves that are
      not floating-point numbers are those of the first term.

    Raises:
      ValueError: with the path of the leaf, if one has no leading axis or one of
        another length; if ``weights`` are not K scalars or one is negative; if
        ``max_ratio`` is less than 1 or not a scalar.

    A term whose gradient is zero adds nothing. A NaN or Inf in one term makes every
    gradient NaN. The scales are right over the whole range of the dtype, as those of
    :func:`stablegrad`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import stablegrad_optax as sg
      >>> def losses(w):
      ...     return {
      ...         "residual": 1024 * (w[0] + w[1]) ** 2,
      ...         "boundary": (w[0] - w[1]) ** 2 / 1024,
      ...     }
      >>> params, tx = jnp.array([3., 1.]), optax.sgd(0.25)
      >>> values, grads = sg.value_and_grad_of_terms(losses)(params)
      >>> balanced = sg.balance_terms(grads, {"residual": 2.0, "boundary": 1.0})
      >>> print(balanced)
      [3. 1.]
      >>> updates, _ = tx.update(balanced, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [2.25 0.75]
    """
    importance = _importance(weights, _number_of_terms(grads))
    if max_ratio is not None:
        _checks.at_least(1, "max_ratio", max_ratio)
    leaves = _inexact_leaves(grads)
    if not leaves:
        return jax.tree.map(lambda leaf: leaf[0], grads)
    scale = _scale_of_terms(leaves, axis_name)
    bound = None
    if max_ratio is not None:
        largest = jnp.max(_scale.value(scale))
        ratio = jnp.asarray(max_ratio, largest.dtype)
        bound = jnp.asarray(importance, largest.dtype) * ratio / largest
    gain = _scale.gain(scale, importance, bound)
    return jax.tree.map(
        lambda leaf: (
            _scale.rescaled_sum(jnp.asarray(leaf), gain)
            if _is_inexact(leaf)
            else leaf[0]
        ),
        grads,
    )


def term_scales(grads: Any, *, axis_name: AxisName | None = None) -> jax.Array:
    r"""The scale :math:`\sigma_k` of each term, what :func:`balance_terms` divides by.

    It can be called inside ``jax.jit``, to be recorded with the losses.

    Args:
      grads, axis_name: as for :func:`balance_terms`.

    Returns:
      K root mean squares in the order of the terms, zero where a gradient is zero and
      NaN where one is not finite; float32, or float64 if a leaf is float64 or
      complex128.

    Raises:
      ValueError: as :func:`balance_terms` for the leaves, or if none of them has a
        floating-point element.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.array([[3., -3., 3.], [0., 0., 0.]])
      >>> grads = {"w": w, "b": jnp.array([3., 4.])}
      >>> print(term_scales(grads))
      [3. 2.]
    """
    _number_of_terms(grads)
    return _scale.value(_scale_of_terms(_inexact_leaves(grads), axis_name))


def term_alignment(grads: Any, *, axis_name: AxisName | None = None) -> jax.Array:
    r"""The cosines between the gradients of the terms.

    .. math::

        \cos_{kl} = \frac{\operatorname{Re} \langle g_k, g_l \rangle}
                         {\lVert g_k \rVert \, \lVert g_l \rVert}

    Negative where two terms are in conflict: a small step down one of them leads up the
    other. No scale of a term matters here.

    Args:
      grads, axis_name: as for :func:`balance_terms`.

    Returns:
      A symmetric matrix of shape (K, K) in the dtype of :func:`term_scales`; 0 where
      one of the two gradients is zero, the diagonal included.

    Raises:
      ValueError: as :func:`term_scales`.

    Example:
      >>> import jax.numpy as jnp
      >>> grads = jnp.array([[3e-9, 4e-9], [-3e9, -4e9], [4., -3.]])
      >>> print(term_alignment(grads).round(3) + 0)
      [[ 1. -1.  0.]
       [-1.  1.  0.]
       [ 0.  0.  1.]]
    """
    number = _number_of_terms(grads)
    leaves = _inexact_leaves(grads)
    gain = _scale.gain(_scale_of_terms(leaves, axis_name), 1.0, None)
    products = sum(
        _inner_products(_scale.rescale(x, gain, 0, saturate=False).reshape(number, -1))
        for x in _scale.in_accumulation_dtype(leaves)
    )
    if axis_name is not None:
        products = lax.psum(products, axis_name)
    # A term of zeros has zeros in its row.
    norms = jnp.sqrt(jnp.where(jnp.diag(products) == 0, 1, jnp.diag(products)))
    return jnp.clip(products / jnp.outer(norms, norms), -1, 1)


def _inner_products(terms: jax.Array) -> jax.Array:
    """Of the rows; real ones, a complex number counts as a vector of two."""
    return jnp.matmul(terms.conj(), terms.T, precision=lax.Precision.HIGHEST).real


def _scale_of_terms(
    leaves: Sequence[jax.Array], axis_name: AxisName | None
) -> _scale.Scale:
    if not leaves:
        raise ValueError("grads has no floating-point elements.")
    (scale,) = _scale.scales([[Slices(x, 0) for x in leaves]], "rms", axis_name)
    return scale


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(_layers.dtype_of(leaf), np.inexact)


def _inexact_leaves(grads: Any) -> list[jax.Array]:
    """The leaves that have floating-point elements."""
    leaves = [x for x in jax.tree.leaves(grads) if _is_inexact(x) and np.size(x)]
    return list(map(jnp.asarray, leaves))


# --- Checks ---


def _check_differentiable(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not _is_inexact(leaf):
            raise TypeError(
                "params must be floating-point or complex arrays, got "
                f"{_layers.dtype_of(leaf)} in leaf {_layers.path_name(path)!r}."
            )


def _check_terms(values: Any) -> None:
    terms = jax.tree_util.tree_leaves_with_path(values)
    if not terms:
        raise ValueError("losses must return one term or more, got none.")
    for path, value in terms:
        shape, dtype = np.shape(value), jnp.result_type(value)
        if shape != () or not jnp.issubdtype(dtype, np.floating):
            raise ValueError(
                "losses must return floating-point scalars, got "
                f"{dtype.name}{list(shape)} for term {_layers.path_name(path)!r}."
            )


def _number_of_terms(grads: Any) -> int:
    """The length of the leading axis, which all leaves have."""
    number = None
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        shape, name = np.shape(leaf), _layers.path_name(path)
        if not shape or shape[0] == 0:
            raise ValueError(
                "each leaf of grads must have a leading axis of terms, got shape "
                f"{shape} for leaf {name!r}."
            )
        if number is None:
            number, first = shape[0], name
        if shape[0] != number:
            raise ValueError(
                f"leaf {name!r} of grads has {shape[0]} terms on its leading axis, and "
                f"leaf {first!r} has {number}."
            )
    if number is None:
        raise ValueError("grads has no leaves.")
    return number


def _importance(weights: Any, number: int) -> ArrayLike:
    """One weight for each term, 1 by default."""
    if weights is None:
        return 1.0
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    if len(leaves) != number:
        raise ValueError(
            f"weights must be {number} scalars, one for each term, got {len(leaves)}."
        )
    for path, weight in leaves:
        name = f"weights at {_layers.path_name(path)!r}"
        _checks.not_negative(name, weight)
    return jnp.stack([jnp.asarray(weight, float) for _, weight in leaves])
