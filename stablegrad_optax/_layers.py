"""Which leaves of a gradient tree form a layer.

A *layer* is a set of leaves that share one gain. Its scale is measured on its *weight*
leaves; the gain is applied to all its *members*, biases included. A layer whose leaves
are stacked (`nn.scan`, `nnx.vmap`, ensembles) holds `length` layers side by side, with
one scale and one gain for each slice along the stack axis.

All but `Layer.scale` happens while tracing, from key paths, shapes and dtypes.
"""

import collections
import dataclasses
import itertools
import operator
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, SequenceKey

from stablegrad_optax import _scale

KeyPath = tuple[Any, ...]
GroupBy = str | Callable[[KeyPath, Any], Hashable]
IsWeight = Callable[[KeyPath, Any], bool]
StackAxis = int | Callable[[KeyPath, Any], int | None]

GROUPINGS = ("layer", "leaf", "tree")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A floating-point leaf: where it is, and how it takes part in its layer."""

    index: int  # position among the flattened leaves
    key_path: KeyPath  # as JAX has it
    path: KeyPath  # without the key by which a flax Variable holds its array
    value: Any  # an array, or its shape and dtype
    stack_axis: int | None  # not negative
    is_weight: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return tuple(np.shape(self.value))

    @property
    def length(self) -> int | None:
        """How many slices are stacked in the leaf; None if it is not stacked."""
        return None if self.stack_axis is None else self.shape[self.stack_axis]

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """The shape without the stack axis."""
        return tuple(n for a, n in enumerate(self.shape) if a != self.stack_axis)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Leaves that share one gain, or one gain per slice where they are stacked."""

    name: str
    members: tuple[Leaf, ...]

    @property
    def weights(self) -> tuple[Leaf, ...]:
        """The leaves from which the scale of the layer is taken."""
        return tuple(leaf for leaf in self.members if leaf.is_weight)

    @property
    def length(self) -> int | None:
        """How many layers are stacked in it; None if it is not stacked."""
        return self.members[0].length

    def scale(self, statistic: str, axis_name: _scale.AxisName | None) -> jax.Array:
        """σ of its weights, of which there must be one."""
        values = [jnp.asarray(leaf.value) for leaf in self.weights]
        axes = [leaf.stack_axis for leaf in self.weights]
        return _scale.scale(values, statistic, axis_name, axes)


def check_grouping(group_by: GroupBy) -> None:
    """Raises ValueError unless `group_by` is callable or the name of a grouping."""
    if not callable(group_by) and group_by not in GROUPINGS:
        raise ValueError(
            f"group_by must be one of {', '.join(map(repr, GROUPINGS))} or a callable "
            f"(key_path, leaf) -> group, got {group_by!r}."
        )


def find_layers(
    tree: Any,
    group_by: GroupBy = "layer",
    is_weight: IsWeight | None = None,
    stack_axis: StackAxis | None = None,
) -> list[Layer]:
    """Splits the floating-point leaves of a tree into layers, in the tree's order.

    Layers without a weight leaf are included; they have no scale. Leaves that are not
    floating-point numbers (integers, booleans, float0, PRNG keys) belong to no layer.
    """
    check_grouping(group_by)
    leaves = _describe_leaves(tree, is_weight, stack_axis)
    modules = _modules(leaves, must_be_clear=group_by == "layer")
    if is_weight is None:
        leaves = _keep_highest_rank(leaves, modules)
    if group_by == "tree":  # slices are pooled with everything else
        leaves = [dataclasses.replace(leaf, stack_axis=None) for leaf in leaves]
    groups: dict[tuple[Hashable, bool], list[Leaf]] = collections.defaultdict(list)
    for leaf, module in zip(leaves, modules, strict=True):
        # A leaf that is not stacked cannot share a gain with one slice among many.
        is_stacked = leaf.stack_axis is not None
        groups[_group(leaf, module, group_by), is_stacked].append(leaf)
    layers: dict[str, Layer] = {}
    for (key, _), members in groups.items():
        name = str(key) if callable(group_by) else path_name(cast(KeyPath, key))
        _check_lengths(name, members)
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        name = next(n for n in itertools.chain([name], numbered) if n not in layers)
        layers[name] = Layer(name, tuple(members))
    return list(layers.values())


def _group(leaf: Leaf, module: KeyPath, group_by: GroupBy) -> Hashable:
    if not callable(group_by):
        return {"layer": module, "leaf": leaf.path, "tree": ()}[group_by]
    key = group_by(leaf.key_path, leaf.value)
    if not isinstance(key, Hashable):
        raise ValueError(
            f"group_by must return something hashable, got {key!r} for leaf "
            f"{path_name(leaf.path)!r}."
        )
    return key


def _check_lengths(name: str, members: Sequence[Leaf]) -> None:
    first = members[0]
    for leaf in members:
        if leaf.length != first.length:
            raise ValueError(
                f"layer {name!r} stacks {first.length} slices in leaf "
                f"{path_name(first.path)!r} and {leaf.length} in "
                f"{path_name(leaf.path)!r}; one layer needs one length."
            )


def path_name(path: KeyPath) -> str:
    """A path as "encoder/0/kernel"; "." for the root of the tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "."


# --- Leaves ---


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array, a PRNG key, a shape or a Python number; else None."""
    if isinstance(leaf, bool | int | float | complex):
        return jnp.result_type(leaf)
    return getattr(leaf, "dtype", None)


def is_inexact(leaf: Any) -> bool:
    """Whether it is an array of floating-point or complex numbers, or its shape."""
    dtype = dtype_of(leaf)
    return dtype is not None and jnp.issubdtype(dtype, np.inexact)


def inexact_leaves(tree: Any) -> list[jax.Array]:
    """The leaves that have floating-point or complex elements."""
    leaves = [x for x in jax.tree.leaves(tree) if is_inexact(x) and np.size(x)]
    return list(map(jnp.asarray, leaves))


def _describe_leaves(
    tree: Any, is_weight: IsWeight | None, stack_axis: StackAxis | None
) -> list[Leaf]:
    """The floating-point leaves; by default a weight has two axes or more."""
    leaves = []
    for index, (key_path, path, value) in enumerate(_leaves_with_paths(tree)):
        if not is_inexact(value):
            continue
        axis = stack_axis(key_path, value) if callable(stack_axis) else stack_axis
        if axis is not None:
            axis = _positive_axis(path, np.shape(value), axis)
        leaf = Leaf(index, key_path, path, value, axis, is_weight=False)
        if is_weight is None:
            weight = len(leaf.slice_shape) >= 2
        else:
            weight = bool(is_weight(key_path, value))
        # A slice without elements has no scale.
        weight = weight and 0 not in leaf.shape
        leaves.append(dataclasses.replace(leaf, is_weight=weight))
    return leaves


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


def _positive_axis(path: KeyPath, shape: tuple[int, ...], axis: int) -> int:
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


def _keep_highest_rank(
    leaves: Sequence[Leaf], modules: Sequence[KeyPath]
) -> list[Leaf]:
    """Of the weights in a module, those with the most axes; the others are biases.

    Such as those of Equinox's convolutions, (C, 1, 1), and Flax's attention, (h, d).
    """
    keys = [
        (module, leaf.length is None)
        for leaf, module in zip(leaves, modules, strict=True)
    ]
    ranks = [len(leaf.slice_shape) if leaf.is_weight else 0 for leaf in leaves]
    highest: dict[tuple[KeyPath, bool], int] = collections.defaultdict(int)
    for key, rank in zip(keys, ranks, strict=True):
        highest[key] = max(highest[key], rank)
    return [
        dataclasses.replace(leaf, is_weight=leaf.is_weight and rank == highest[key])
        for leaf, key, rank in zip(leaves, keys, ranks, strict=True)
    ]


# --- Modules ---


def _modules(leaves: Sequence[Leaf], must_be_clear: bool) -> list[KeyPath]:
    """For each leaf the path of its module, or of its weight in a flat sequence."""
    modules = [leaf.path[:-1] for leaf in leaves]
    sequences: dict[KeyPath, dict[int, int]] = collections.defaultdict(dict)
    for position, leaf in enumerate(leaves):
        index = _index(leaf.path)
        if index is not None:
            sequences[modules[position]][index] = position
    for positions in sequences.values():
        items = {index: leaves[p] for index, p in sorted(positions.items())}
        for index, owner in _owners(items, must_be_clear).items():
            modules[positions[index]] = owner.path
    return modules


def _index(path: KeyPath) -> int | None:
    """The position of an item of a sequence; None for a leaf with a name.

    State dicts hold the items of a list by integers (NNX) or their digits (Linen).
    """
    key = path[-1] if path else None
    if isinstance(key, SequenceKey):
        return key.idx
    if isinstance(key, DictKey | FlattenedIndexKey):
        key = key.key
    if isinstance(key, int):
        return key
    return int(key) if isinstance(key, str) and key.isdecimal() else None


def _owners(items: dict[int, Leaf], must_be_clear: bool) -> dict[int, Leaf]:
    """For each item of a flat sequence the weight that it goes with.

    Empty if the sequence is one module: with one weight or none, as in (W, b). Weights
    alone are layers of their own; in [W1, b1, W2, b2] each other leaf goes with the
    weight before it. In other mixtures that is a guess.

    Raises:
      ValueError: if it is a guess and `must_be_clear`.
    """
    owner = next((leaf for leaf in items.values() if leaf.is_weight), None)
    if owner is None:
        return {}
    owners = {}
    for index, leaf in items.items():
        if leaf.is_weight and not _is_convolution_bias(leaf, owner):
            owner = leaf
        owners[index] = owner
    is_weight = {index: owners[index] is leaf for index, leaf in items.items()}
    if sum(is_weight.values()) < 2:
        return {}
    # By indices, since items may be masked.
    first = min(items)
    alternates = all(w == ((i - first) % 2 == 0) for i, w in is_weight.items())
    if must_be_clear and not all(is_weight.values()) and not alternates:
        names = [f"{path_name(leaf.path)!r} {leaf.shape}" for leaf in items.values()]
        raise ValueError(
            "a flat sequence with several weights beside other leaves must alternate, "
            f"as in [W1, b1, W2, b2]; got {', '.join(names)}. Say by group_by which of "
            'them form a layer: a callable (key_path, leaf) -> group, or "leaf".'
        )
    return owners


def _is_convolution_bias(leaf: Leaf, weight: Leaf) -> bool:
    """Whether the shapes are those of Equinox: (C, 1, 1) and (C, I, h, w)."""
    channels, *others = weight.slice_shape or (0,)
    return len(others) > 1 and leaf.slice_shape == (channels, *[1] * (len(others) - 1))
