"""The gradient transformation: each layer's gradient divided by its own scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from stablegrad_optax import _groups, _measure, _rescaling, _statistics
from stablegrad_optax._reductions import AxisName

StableGradState = optax.EmptyState


def stablegrad(
    reference: ArrayLike = 1.0,
    *,
    group_by: _groups.GroupBy = "layer",
    statistic: str = "std",
    is_weight: _groups.IsWeight | None = None,
    stack_axis: _groups.StackAxis | None = None,
    max_gain: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales the gradient of each layer to a reference scale.

    After backpropagation and before the optimizer, every gradient leaf :math:`G` of a
    layer :math:`l`, weights and biases alike, is multiplied by the layer's gain:

    .. math::

        \hat G = \gamma_l G, \qquad
        \gamma_l = \rho / \sigma_l, \qquad
        \sigma_l = \operatorname{std}(\text{weight gradients of layer } l)

    The forward model is untouched. The transform keeps no state, works without
    parameters, and can stand anywhere in a chain; its place is in front of the
    optimizer.

    Args:
      reference: :math:`\rho`, a scalar that is not negative. A number, an array, or a
        schedule by way of ``optax.inject_hyperparams``. The paper takes the standard
        deviation of the prediction gradient, which changes from step to step: pass it
        to ``update`` as ``reference=``, see :func:`value_and_grad_with_reference`.
      group_by: what shares one gain. ``"layer"``: leaves in the same module; weights
        side by side in a list are layers of their own. ``"leaf"``: each weight leaf by
        itself, other leaves pass unchanged. ``"tree"``: everything. Or a callable that
        takes a leaf's key path and returns a hashable group.
      statistic: ``"std"``, the population standard deviation over all weight entries
        of the layer, or ``"rms"``, their root mean square.
      is_weight: callable ``(key_path, leaf) -> bool`` that says from which leaves the
        scale is taken. Default: those with two or more axes, stack axes not counted. A
        layer without weights, such as a norm's scale and bias, passes unchanged.
      stack_axis: the axis along which a leaf holds many layers (``nn.scan``,
        ``nnx.vmap``, ensembles). Each slice gets its own gain. An int holds for every
        leaf; a callable ``(key_path, leaf) -> int | None`` says it for each. Under
        ``optax.inject_hyperparams``, name it and all callables in ``static_args``.
      max_gain: an upper bound on :math:`\gamma_l`, a positive scalar.
      axis_name: name or names of the mesh axes over which every leaf of a layer is
        sharded, for use inside ``jax.shard_map`` or ``jax.pmap``. Not needed under
        ``jax.jit`` with sharded arrays.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its ``update(updates, state,
      params=None, *, reference=None, **extra_args)`` returns updates of the same
      structure, shapes and dtypes; ``reference`` replaces the constructor's for that
      step, and extra arguments meant for others in a chain are ignored.

    Raises:
      ValueError: at construction if an option is unknown, ``reference`` negative or
        not a scalar, or ``max_gain`` not positive; at the first trace, with the path of
        the leaf, if a stack axis is out of range or differs in length within a layer.

    Where :math:`\sigma_l = 0` because the gradient is zero, it passes unchanged. Where
    the entries are all equal, or there is but one, the rms stands in for the std, so a
    finite gradient stays finite. A NaN or Inf makes its own layer NaN and no other.
    Integer and ``float0`` leaves, ``None`` and ``optax.MaskedNode`` pass through.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import stablegrad_optax as sg
      >>> params = {
      ...     "first": {"kernel": jnp.array([[1., 3.]]), "bias": jnp.array([1., 1.])},
      ...     "second": {"kernel": jnp.array([[4e-9], [-4e-9]])},
      ... }
      >>> def loss(params):  # its gradient is `params` itself
      ...     return 0.5 * sum(jnp.vdot(x, x) for x in jax.tree.leaves(params))
      >>> tx = optax.chain(sg.stablegrad(), optax.sgd(0.1))
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jax.grad(loss)(params), state, params)
      >>> print(updates["first"]["kernel"], updates["first"]["bias"])
      [[-0.1 -0.3]] [-0.1 -0.1]
      >>> print(updates["second"]["kernel"].T)
      [[-0.1  0.1]]

    References:
      Mestre et al., `StableGrad: Backward Scale Control without Batch Normalization
      <https://arxiv.org/abs/2605.19856>`_, 2026
    """
    _groups.check_grouping(group_by)
    _statistics.check_statistic(statistic)
    _check_reference(reference)
    if max_gain is not None:
        _check_scalar("max_gain", max_gain)
        if _is_concrete(max_gain) and not np.asarray(max_gain) > 0:
            raise ValueError(f"max_gain must be positive, got {max_gain}.")
    default_reference = reference

    def init_fn(params):
        del params
        return StableGradState()

    def update_fn(updates, state, params=None, *, reference=None, **extra_args):
        del params, extra_args
        if reference is None:
            reference = default_reference
        else:
            _check_reference(reference)
        bound = None if max_gain is None else _as_float(max_gain)
        leaves, treedef = jax.tree.flatten(updates)
        layers = _measure.measure_layers(
            updates,
            group_by=group_by,
            statistic=statistic,
            is_weight=is_weight,
            stack_axis=stack_axis,
            axis_name=axis_name,
            then=_rescaling.gain,
            args=(_unless_one(reference), bound),
        )
        for layer, gain in layers:
            for leaf in layer.members:
                leaves[leaf.index] = _rescaling.rescale(
                    jnp.asarray(leaves[leaf.index]),
                    gain,
                    layer.stack_axis_of(leaf),
                    _can_overflow(leaf),
                )
        return jax.tree.unflatten(treedef, leaves), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _can_overflow(leaf: _groups.Leaf) -> bool:
    """Whether a finite entry, divided by the layer's scale, may leave the leaf's dtype.

    Entries of a weight are at most a small multiple of sqrt(N) scales, which only
    float16 cannot hold. A bias can be far larger than its layer's weights.
    """
    return not leaf.is_weight or float(jnp.finfo(leaf.dtype).max) < 1e30


def _as_float(scalar: ArrayLike) -> jax.Array:
    scalar = jnp.asarray(scalar)
    is_float = jnp.issubdtype(scalar.dtype, np.inexact)
    return scalar if is_float else scalar.astype(jnp.result_type(float))


def _unless_one(reference: ArrayLike) -> jax.Array | None:
    is_one = _is_concrete(reference) and np.asarray(reference) == 1
    return None if is_one else _as_float(reference)


def _is_concrete(x: ArrayLike) -> bool:
    return not isinstance(x, jax.core.Tracer)


def _check_scalar(name: str, value: ArrayLike) -> None:
    if np.shape(value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}.")


def _check_reference(reference: ArrayLike) -> None:
    _check_scalar("reference", reference)
    if _is_concrete(reference) and np.asarray(reference) < 0:
        raise ValueError(f"reference must not be negative, got {reference}.")
