"""Which leaves of a gradient tree form a layer.

A *layer* is a set of leaves that share one gain. Its scale is measured on its *weight*
leaves; the gain is applied to all its *members*, biases included. A layer whose leaves
are stacked (`nn.scan`, `nnx.vmap`, ensembles) holds many side by side, with one scale
and one gain for each slice along the stack axis.

All but `Layer.scale` happens while tracing, from key paths, shapes and dtypes.
"""

import collections
import dataclasses
import itertools
import operator
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey

from stablegrad_optax import _scale

KeyPath = tuple[Any, ...]
GroupBy = str | Callable[[KeyPath, Any], Hashable]
IsWeight = Callable[[KeyPath, Any], bool]
StackAxis = int | Callable[[KeyPath, Any], int | None]


@dataclasses.dataclass(frozen=True)
class Grouping:
    """The options that say what a layer is, and what its scale; as for `stablegrad`."""

    group_by: GroupBy = "layer"
    statistic: str = "std"
    is_weight: IsWeight | None = None
    stack_axis: StackAxis | None = None
    axis_name: _scale.AxisName | None = None

    def __post_init__(self):
        by, statistic = self.group_by, self.statistic
        if not callable(by) and by not in ("layer", "leaf", "tree"):
            raise ValueError(
                "group_by must be one of 'layer', 'leaf', 'tree' or a callable "
                f"(key_path, leaf) -> group, got {by!r}."
            )
        if statistic not in ("std", "rms"):
            raise ValueError(
                f"statistic must be one of 'std', 'rms', got {statistic!r}."
            )


@dataclasses.dataclass
class Leaf:
    """A floating-point leaf: where it is, and how it takes part in its layer."""

    index: int  # position among the flattened leaves
    key_path: KeyPath  # as JAX has it
    path: KeyPath  # as `_leaves_with_paths` has it
    module: KeyPath  # that of its module, or of its weight in a flat sequence
    value: Any  # an array, or its shape and dtype
    stack_axis: int | None  # not negative
    length: int | None  # of the stack axis
    slice_shape: tuple[int, ...]  # without the stack axis
    is_weight: bool


class Layer(NamedTuple):
    """Leaves that share one gain, or one gain per slice where they are stacked."""

    name: str
    members: list[Leaf]
    weights: list[Leaf]  # those of the members from which the scale is taken
    size: int  # how many layers are stacked in it, or 1

    def scale(self, grouping: Grouping) -> jax.Array:
        """σ of its weights, of which there must be one."""
        values = [jnp.asarray(leaf.value) for leaf in self.weights]
        axes = [leaf.stack_axis for leaf in self.weights]
        return _scale.scale(values, grouping.statistic, grouping.axis_name, axes)


def find_layers(tree: Any, grouping: Grouping) -> list[Layer]:
    """Splits the floating-point leaves of a tree into layers, in the tree's order.

    Layers without a weight leaf are included; they have no scale. Leaves that are not
    floating-point numbers (integers, booleans, float0, PRNG keys) belong to no layer.
    """
    by = grouping.group_by
    leaves = list(_floating_point_leaves(tree, grouping))
    _join_flat_sequences(leaves, must_be_clear=by == "layer")
    if grouping.is_weight is None:
        _keep_highest_rank(leaves)
    groups: dict[Any, list[Leaf]] = collections.defaultdict(list)
    for leaf in leaves:
        if by == "tree":  # slices are pooled with everything else
            leaf.stack_axis = leaf.length = None
        # A leaf that is not stacked cannot share a gain with one slice among many.
        groups[_group(leaf, by), leaf.length is None].append(leaf)
    layers: dict[str, Layer] = {}
    for (group, _), members in groups.items():
        name = str(group) if callable(by) else path_name(group)
        first = members[0]
        for leaf in members:
            if leaf.length != first.length:
                raise ValueError(
                    f"layer {name!r} stacks {first.length} slices in leaf "
                    f"{path_name(first.path)!r} and {leaf.length} in "
                    f"{path_name(leaf.path)!r}; one layer needs one length."
                )
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        name = next(n for n in itertools.chain([name], numbered) if n not in layers)
        weights = [leaf for leaf in members if leaf.is_weight]
        size = 1 if first.length is None else first.length
        layers[name] = Layer(name, members, weights, size)
    return list(layers.values())


def _group(leaf: Leaf, by: GroupBy) -> Hashable:
    if not callable(by):
        return {"layer": leaf.module, "leaf": leaf.path, "tree": ()}[by]
    group = by(leaf.key_path, leaf.value)
    if not isinstance(group, Hashable):
        raise ValueError(
            f"group_by must return something hashable, got {group!r} for leaf "
            f"{path_name(leaf.path)!r}."
        )
    return group


def path_name(path: KeyPath) -> str:
    """A path as "encoder/0/kernel"; "." for the root of the tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "."


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array, a PRNG key, a shape or a Python number; else None."""
    if isinstance(leaf, bool | int | float | complex):
        return jnp.result_type(leaf)
    return getattr(leaf, "dtype", None)


def is_inexact(leaf: Any) -> bool:
    """Whether it is an array of floating-point or complex numbers, or its shape."""
    dtype = dtype_of(leaf)
    return dtype is not None and jnp.issubdtype(dtype, np.inexact)


def inexact_leaves(tree: Any, name: str) -> list[jax.Array]:
    """The leaves that have floating-point or complex elements; ValueError if none."""
    leaves = [x for x in jax.tree.leaves(tree) if is_inexact(x) and np.size(x)]
    if not leaves:
        raise ValueError(f"{name} has no floating-point elements.")
    return list(map(jnp.asarray, leaves))


def _floating_point_leaves(tree: Any, grouping: Grouping) -> Iterator[Leaf]:
    """By default a weight has two axes or more."""
    axis_of = grouping.stack_axis
    for index, (key_path, path, value) in enumerate(_leaves_with_paths(tree)):
        if not is_inexact(value):
            continue
        shape = np.shape(value)
        axis = axis_of(key_path, value) if callable(axis_of) else axis_of
        if axis is not None:
            axis = _positive_axis(path, shape, axis)
        slice_shape = tuple(n for a, n in enumerate(shape) if a != axis)
        is_weight = len(slice_shape) >= 2
        if grouping.is_weight is not None:
            is_weight = bool(grouping.is_weight(key_path, value))
        yield Leaf(
            index=index,
            key_path=key_path,
            path=path,
            module=path[:-1],
            value=value,
            stack_axis=axis,
            length=None if axis is None else shape[axis],
            slice_shape=slice_shape,
            is_weight=is_weight and 0 not in shape,  # no elements have no scale
        )


def _leaves_with_paths(tree: Any) -> Iterator[tuple[KeyPath, KeyPath, Any]]:
    """Key path, path and value of each leaf, in the order of `jax.tree.leaves`.

    In the path, flat names such as "a/b/kernel" and "a.b.weight" are split, and the key
    by which a flax Variable holds its array is left out: a Variable is not a module.
    """
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable):
        inner = jax.tree_util.tree_leaves_with_path(node)
        for rest, value in inner:
            key_path = (*path, *rest)
            yield key_path, _split(path if len(inner) == 1 else key_path), value


def _split(path: KeyPath) -> KeyPath:
    *module, last = path or (None,)
    # The parts are bare, unlike the keys of nested dicts: {"a": {"b": ...}} beside
    # {"a/b/kernel": ...} is another module.
    if isinstance(last, DictKey) and isinstance(last.key, str):
        return (*module, *re.split("[/.]", last.key))
    if isinstance(last, DictKey) and isinstance(last.key, tuple):
        return (*module, *last.key)  # flax.traverse_util.flatten_dict
    return path


def _is_variable(node: Any) -> bool:
    """Whether it is a Variable of NNX, or a box of Linen such as Partitioned."""
    # By name, since the library does not depend on flax.
    return any(
        base.__name__ in ("Variable", "VariableState", "AxisMetadata")
        and base.__module__.split(".")[0] == "flax"
        for base in type(node).__mro__
    )


def _positive_axis(path: KeyPath, shape: tuple[int, ...], axis: Any) -> int:
    try:
        axis = operator.index(axis)
    except TypeError:
        raise ValueError(
            f"stack_axis must be an int that is known while tracing, got {axis}; under "
            "optax.inject_hyperparams, name it in static_args."
        ) from None
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"stack_axis {axis} is out of range for leaf {path_name(path)!r} of shape "
            f"{shape}; give a callable that returns None for leaves without the axis."
        )
    return axis % len(shape)


def _keep_highest_rank(leaves: Sequence[Leaf]) -> None:
    """Of the weights in a module, those with the most axes; the others are biases.

    Such as those of Equinox's convolutions, (C, 1, 1), and Flax's attention, (h, d).
    """
    weights = [leaf for leaf in leaves if leaf.is_weight]
    ranks = collections.defaultdict(set)
    for leaf in weights:
        ranks[leaf.module, leaf.length is None].add(len(leaf.slice_shape))
    for leaf in weights:
        highest = max(ranks[leaf.module, leaf.length is None])
        leaf.is_weight = len(leaf.slice_shape) == highest


def _join_flat_sequences(leaves: Sequence[Leaf], must_be_clear: bool) -> None:
    """Makes each weight in a flat sequence a module, with what goes with it.

    Weights alone are layers of their own; in [W1, b1, W2, b2] each other leaf goes with
    the weight before it. A sequence with one weight or none, as (W, b), is one module
    already. Any other is a guess, and a ValueError where it `must_be_clear`.
    """
    sequences: dict[KeyPath, dict[int, Leaf]] = collections.defaultdict(dict)
    for leaf in leaves:
        # State dicts hold items by integers (NNX) or their digits (Linen).
        last = path_name(leaf.path[-1:])
        if last.isdecimal():
            sequences[leaf.module][int(last)] = leaf
    for sequence in sequences.values():
        positions, items = zip(*sorted(sequence.items()), strict=True)
        owners = _owners(items)
        is_weight = [leaf is owner for leaf, owner in zip(items, owners, strict=True)]
        if sum(is_weight) < 2:
            continue
        # By positions, since items may be masked.
        alternates = is_weight == [(p - positions[0]) % 2 == 0 for p in positions]
        if must_be_clear and not all(is_weight) and not alternates:
            names = [
                f"{path_name(leaf.path)!r} {np.shape(leaf.value)}" for leaf in items
            ]
            raise ValueError(
                "a flat sequence with several weights beside other leaves must "
                f"alternate, as in [W1, b1, W2, b2]; got {', '.join(names)}. Say by "
                "group_by which of them form a layer: a callable (key_path, leaf) -> "
                'group, or "leaf".'
            )
        for leaf, owner in zip(items, owners, strict=True):
            leaf.module = owner.path


def _owners(items: Sequence[Leaf]) -> list[Leaf]:
    """For each item of a sequence its weight: itself, or else the last one before."""
    owner = next((leaf for leaf in items if leaf.is_weight), items[0])
    owners = []
    for leaf in items:
        # Equinox's convolutions, (C, I, h, w), have biases of shape (C, 1, 1).
        channels, *others = owner.slice_shape or (0,)
        bias_shape = (channels, *[1] * (len(others) - 1))
        is_bias = len(others) > 1 and leaf.slice_shape == bias_shape
        if leaf.is_weight and not is_bias:
            owner = leaf
        owners.append(owner)
    return owners
