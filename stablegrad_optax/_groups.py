"""Which leaves of a gradient tree form a layer.

A *layer* is a set of leaves that share one gain. Its scale is measured on its *weight*
leaves; the gain is applied to all its *members*, biases included. A layer whose leaves
are stacked (`nn.scan`, `nnx.vmap`, ensembles) holds `length` layers side by side, one
scale and one gain for each slice along the stack axis.

Everything here happens while tracing and looks at key paths and shapes only.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

KeyPath = tuple[Any, ...]
GroupBy = str | Callable[[KeyPath], Hashable]
IsWeight = Callable[[KeyPath, Any], bool]
StackAxis = int | Callable[[KeyPath, Any], int | None]

GROUPINGS = ("layer", "leaf", "tree")

# The attribute in which flax keeps the array of a Variable or of a Partitioned box.
_BOX_ATTRIBUTES = ("value", "raw_value")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A floating-point leaf: where it is, and how it takes part in its layer."""

    index: int  # position among the flattened leaves
    path: KeyPath
    unboxed: KeyPath  # the path without the key by which a flax box holds its array
    shape: tuple[int, ...]
    dtype: Any
    stack_axis: int | None  # not negative
    is_weight: bool

    @property
    def length(self) -> int | None:
        """How many slices are stacked in the leaf; None if it is not stacked."""
        return None if self.stack_axis is None else self.shape[self.stack_axis]


@dataclasses.dataclass(frozen=True)
class Layer:
    """Leaves that share one gain, or one gain per slice where they are stacked."""

    name: str
    members: tuple[Leaf, ...]
    length: int | None

    @property
    def weights(self) -> tuple[Leaf, ...]:
        """The leaves from which the scale of the layer is taken."""
        return tuple(leaf for leaf in self.members if leaf.is_weight)

    def stack_axis_of(self, leaf: Leaf) -> int | None:
        """The axis of a member along which gains differ; None if there is one gain."""
        return None if self.length is None else leaf.stack_axis


def check_grouping(group_by: GroupBy) -> None:
    """Raises ValueError unless `group_by` is callable or the name of a grouping."""
    if not callable(group_by) and group_by not in GROUPINGS:
        raise ValueError(
            f"group_by must be one of {', '.join(map(repr, GROUPINGS))} or a callable "
            f"of the key path, got {group_by!r}."
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
    groups: dict[tuple[Hashable, bool], list[Leaf]] = collections.defaultdict(list)
    for leaf, key in zip(leaves, _group_keys(leaves, group_by), strict=True):
        # Slices are layers of their own; "tree" pools them with everything else. A leaf
        # that is not stacked cannot share a gain with one slice among many.
        stacked = leaf.stack_axis is not None and group_by != "tree"
        groups[key, stacked].append(leaf)
    layers: list[Layer] = []
    taken: set[str] = set()
    for (key, stacked), members in groups.items():
        name = str(key) if callable(group_by) else path_name(cast(KeyPath, key))
        length = _common_length(name, members) if stacked else None
        name = _unused(name, taken)
        taken.add(name)
        layers.append(Layer(name, tuple(members), length))
    return layers


def _unused(name: str, taken: set[str]) -> str:
    """The name, or "name (2)", "name (3)", ... where it is taken."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)


def path_name(path: Sequence[Any]) -> str:
    """A key path as "encoder/0/kernel"; "." for the root of the tree."""
    return "/".join(_key_name(key) for key in path) or "."


def _describe_leaves(
    tree: Any, is_weight: IsWeight | None, stack_axis: StackAxis | None
) -> list[Leaf]:
    leaves = []
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    modules = _unbox(tree, [path for path, _ in flat])
    for index, ((path, value), unboxed) in enumerate(zip(flat, modules, strict=True)):
        dtype = _dtype(value)
        if not jnp.issubdtype(dtype, np.inexact):
            continue
        shape = tuple(np.shape(value))
        axis = stack_axis(path, value) if callable(stack_axis) else stack_axis
        if axis is not None:
            axis = _positive_axis(path, shape, axis)
        if is_weight is None:
            # A stacked bias has two axes as well: rank alone would make it a kernel.
            weight = len(shape) - (axis is not None) >= 2
        else:
            weight = bool(is_weight(path, value))
        # A slice without entries has no scale.
        weight = weight and 0 not in shape
        leaves.append(Leaf(index, path, unboxed, shape, dtype, axis, weight))
    return leaves


def _dtype(value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    return jnp.result_type(value) if dtype is None else dtype


def _positive_axis(path: KeyPath, shape: tuple[int, ...], axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"stack_axis {axis} is out of range for leaf {path_name(path)!r} of shape "
            f"{shape}; give a callable that returns None for leaves without the axis."
        )
    return axis % len(shape)


def _common_length(name: str, members: Sequence[Leaf]) -> int | None:
    first = members[0]
    for leaf in members:
        if leaf.length != first.length:
            raise ValueError(
                f"layer {name!r} stacks {first.length} slices in leaf "
                f"{path_name(first.path)!r} and {leaf.length} in "
                f"{path_name(leaf.path)!r}; one layer needs one length."
            )
    return first.length


def _group_keys(leaves: Sequence[Leaf], group_by: GroupBy) -> list[Hashable]:
    if callable(group_by):
        return [_call_group_by(group_by, leaf) for leaf in leaves]
    if group_by == "tree":
        return [() for _ in leaves]
    if group_by == "leaf":
        return [leaf.unboxed for leaf in leaves]
    return _module_keys(leaves)


def _call_group_by(group_by: Callable[[KeyPath], Hashable], leaf: Leaf) -> Hashable:
    key = group_by(leaf.path)
    try:
        hash(key)
    except TypeError:
        raise ValueError(
            f"group_by must return something hashable, got {key!r} for leaf "
            f"{path_name(leaf.path)!r}."
        ) from None
    return key


def _module_keys(leaves: Sequence[Leaf]) -> list[Hashable]:
    """For each leaf the enclosing module, or the weight it goes with in a sequence."""
    split = [_split_path(leaf.unboxed) for leaf in leaves]
    keys: list[Hashable] = [module for module, _ in split]
    in_sequence: dict[tuple[Any, ...], list[int]] = collections.defaultdict(list)
    for position, (module, key) in enumerate(split):
        if _is_index(key):
            in_sequence[module].append(position)
    for module, positions in in_sequence.items():
        owners = _sequence_owners([leaves[p].is_weight for p in positions])
        if owners is not None:
            for position, owner in zip(positions, owners, strict=True):
                keys[position] = (*module, split[positions[owner]][1])
    return keys


def _sequence_owners(is_weight: Sequence[bool]) -> list[int] | None:
    """For each item of a sequence the position of the weight whose layer it joins.

    None unless the sequence holds several weights: then it is one module, as in (W, b).
    [W1, b1, W2, b2] pairs each bias with the weight before it, and so does [W1, W2, b1,
    b2], where as many biases as weights follow each other; biases ahead of the first
    weight join that one.
    """
    if sum(is_weight) < 2:
        return None
    owners: list[int] = []
    weights: list[int] = []  # the latest run of weights
    biases: list[int] = []  # the run of biases after it

    def close_run() -> None:
        paired = len(biases) == len(weights)
        for nth, position in enumerate(biases):
            owners[position] = weights[nth] if paired else weights[-1]

    first = list(is_weight).index(True)
    for position, weight in enumerate(is_weight):
        owners.append(position if weight else first)
        if weight:
            if biases:
                close_run()
                weights, biases = [], []
            weights.append(position)
        elif weights:
            biases.append(position)
    close_run()
    return owners


def _unbox(tree: Any, paths: Sequence[KeyPath]) -> list[KeyPath]:
    """Drops the key by which a flax Variable holds its array: it is not a module.

    An attribute called `value` beside others (attention's query, key and value), or in
    a class that is not flax's, is a leaf like any other.
    """
    siblings = collections.Counter(path[:-1] for path in paths if path)

    def is_boxed(path: KeyPath) -> bool:
        return (
            len(path) > 1
            and isinstance(path[-1], GetAttrKey)
            and path[-1].name in _BOX_ATTRIBUTES
            and siblings[path[:-1]] == 1
            and _is_flax(_node_at(tree, path[:-1]))
        )

    return [path[:-1] if is_boxed(path) else path for path in paths]


def _is_flax(node: Any) -> bool:
    # By name, since the library does not depend on flax; by base, for users' Variables.
    return any(base.__module__.split(".")[0] == "flax" for base in type(node).__mro__)


def _node_at(tree: Any, path: KeyPath) -> Any:
    """The node to which a key path leads; None if it cannot be followed."""
    for key in path:
        try:
            if isinstance(key, GetAttrKey):
                tree = getattr(tree, key.name)
            else:
                tree = tree[key.key if isinstance(key, DictKey) else key.idx]
        except (AttributeError, KeyError, IndexError, TypeError):
            return None
    return tree


def _split_path(path: KeyPath) -> tuple[tuple[Any, ...], Any]:
    """The enclosing module and the last key; flat names like "a/b/kernel" are split."""
    if not path:
        return (), None
    *module, last = path
    if isinstance(last, DictKey):
        if isinstance(last.key, str) and "/" in last.key:
            *prefix, _ = last.key.split("/")
            # Bare strings, unlike the keys of nested dicts: {"a": {"b": ...}} beside
            # {"a/b/kernel": ...} is another module.
            return (*module, *prefix), last
        if isinstance(last.key, tuple) and last.key:  # flax.traverse_util.flatten_dict
            return (*module, *last.key[:-1]), DictKey(last.key[-1])
    return tuple(module), last


def _is_index(key: Any) -> bool:
    # nnx.State writes the items of a list as a dict with integer keys.
    return isinstance(key, SequenceKey | FlattenedIndexKey) or (
        isinstance(key, DictKey) and isinstance(key.key, int)
    )


def _key_name(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            value = getattr(key, attribute)
            is_flat = isinstance(value, tuple)
            return "/".join(map(str, value)) if is_flat else str(value)
    return str(key)
