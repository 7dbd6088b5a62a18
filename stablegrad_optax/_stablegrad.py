"""The gradient transformation: each layer's gradient divided by its own scale."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from stablegrad_optax import _checks, _layers, _scale


def stablegrad(
    reference: ArrayLike | None = 1.0,
    *,
    group_by: _layers.GroupBy = "layer",
    statistic: str = "std",
    is_weight: _layers.IsWeight | None = None,
    stack_axis: _layers.StackAxis | None = None,
    max_gain: ArrayLike | None = None,
    axis_name: _scale.AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales the gradient of each layer to a reference scale.

    Every gradient leaf :math:`G` of a layer :math:`l`, weights and biases alike, is
    multiplied by the layer's gain:

    .. math::

        \begin{gathered}
        \hat G = \gamma_l G, \qquad \gamma_l = \rho / \sigma_l \\
        \sigma_l = \max(\operatorname{std}, \operatorname{rms} / 16)
        \end{gathered}

    over all elements of the layer's weight gradients. The floor matters only where they
    are nearly equal: it keeps the gain continuous and bounded. The transform keeps no
    state. It goes before the optimizer: after it, it would cancel the learning rate.

    Args:
      reference: :math:`\rho`, a scalar that is not negative, or a schedule by way of
        ``optax.inject_hyperparams``. With None, ``update`` has to be given one, as the
        paper's from :func:`value_and_grad_with_reference`.
      group_by: what shares one gain. ``"layer"``: leaves in the same module; weights
        alone in a list are layers of their own, and so is each pair of an alternating
        list ``[W1, b1, W2, b2]``. ``"leaf"``: each weight leaf by itself; other leaves
        pass unchanged. ``"tree"``: everything. Or a callable ``(key_path, leaf) ->
        hashable``.
      statistic: ``"std"``, as above, or ``"rms"``: the root mean square alone.
      is_weight: callable ``(key_path, leaf) -> bool`` that says from which leaves the
        scale is taken. Default: those with the most axes in their module, if that is
        two or more, stack axes not counted. A layer without weights, such as a norm,
        passes unchanged.
      stack_axis: the axis along which a leaf holds many layers (``nn.scan``,
        ``nnx.vmap``, ensembles), each with its own gain: an int for all leaves, or a
        callable ``(key_path, leaf) -> int | None``. Under ``optax.inject_hyperparams``,
        name it and all callables in ``static_args``.
      max_gain: an upper bound on :math:`\gamma_l`, a positive scalar.
      axis_name: name or names of the mesh axes over which every leaf of a layer is
        sharded, inside ``jax.shard_map`` or ``jax.pmap``; ``jax.jit`` needs none.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. Its ``update(updates, state,
      params=None, *, reference=None, **extra_args)`` returns updates of the same
      structure, shapes and dtypes; ``reference`` replaces the constructor's for a step.

    Raises:
      ValueError: at construction if an option is unknown, or ``reference`` or
        ``max_gain`` out of range; from ``update`` if there is no reference; at the
        first trace, with the path of the leaf, if a stack axis is out of range or
        differs in length within a layer, or the layers of a flat sequence are unclear.

    A layer whose gradient is zero passes unchanged. A single element has its magnitude
    for scale. A finite gradient gives a finite update: no weight element exceeds
    :math:`17 \rho \sqrt N`, and other leaves saturate. A NaN makes its layer NaN; an
    Inf becomes NaN in its place; other layers do not change. Leaves that are not
    floating-point numbers pass through.

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
    grouping = _layers.Grouping(group_by, statistic, is_weight, stack_axis, axis_name)
    default_reference = reference
    if reference is not None:
        _checks.check_scalar("reference", reference, "not be negative")
    if max_gain is not None:
        _checks.check_scalar("max_gain", max_gain, "be positive")

    def init_fn(params):
        del params
        return optax.EmptyState()

    def update_fn(updates, state, params=None, *, reference=None, **extra_args):
        del params, extra_args
        if reference is None:
            reference = default_reference
        if reference is None:
            raise ValueError(
                "stablegrad(None) takes the reference of each step from update; give "
                "it update(..., reference=...), or stablegrad a reference."
            )
        _checks.check_scalar("reference", reference, "not be negative")
        leaves, treedef = jax.tree.flatten(updates)
        for layer in _layers.find_layers(updates, grouping):
            if not layer.weights:
                continue
            gain = _scale.gain(layer.scale(grouping), reference, max_gain)
            for leaf in layer.members:
                leaves[leaf.index] = _scale.rescale(
                    jnp.asarray(leaf.value), gain, leaf.stack_axis, leaf.is_weight
                )
        return jax.tree.unflatten(treedef, leaves), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
