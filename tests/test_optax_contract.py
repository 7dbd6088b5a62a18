"""What the transformations owe optax: its wrappers, its types, its state.

A base optimizer behind one of them, in any wrapper, must give what it gives on the
gradients that the transformation makes by itself. `ROWS` says how each is built, and
what is left of it without the transformation.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stablegrad_optax as sg

STEPS = 4
TERMS = ("residual", "boundary")
COMPATIBILITY_PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"


def tree(seed=0, dtype="float32"):
    """Two dense layers, whose scales differ and change with the seed, and a norm."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        real, imaginary = rng.normal(0.2, 1, (2, *shape))
        is_complex = np.issubdtype(dtype, np.complexfloating)
        return real + 1j * imaginary if is_complex else real

    def dense(scale):
        return {"kernel": scale * leaf(4, 4), "bias": scale * leaf(4)}

    first, second = 10.0 ** rng.uniform(-3, 1, 2)
    layers = {"first": dense(first), "second": dense(second)}
    layers["norm"] = {"scale": leaf(4)}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), layers)


def trees_of_terms(seed=0, dtype="float32"):
    return {name: tree(10 * k + seed, dtype) for k, name in enumerate(TERMS)}


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A transformation at the head of a chain, and what it is fed."""

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    gradient: Callable[..., Any]  # of seed and dtype
    option: dict[str, float]  # a number that changes what it makes
    extra_args: dict[str, Any]

    def make(self):
        return self.factory(**self.option)

    def gradients(self, dtype="float32"):
        return [self.gradient(seed, dtype) for seed in range(STEPS)]

    @functools.cache  # noqa: B019
    def alone(self, dtype="float32"):
        """The gradients that it makes of them."""
        return run(self.make(), self.gradients(dtype), **self.extra_args)[0]


balance = functools.partial(sg.balance_terms, TERMS)
HEADS = {
    "stablegrad": Head(sg.stablegrad, tree, {"max_gain": 2.0}, {"reference": 0.25}),
    "balance_terms": Head(
        balance,
        trees_of_terms,
        {"decay": 0.5},
        {"values": {"residual": 4.0, "boundary": 1.0}},
    ),
}
# For wrappers that hand no extra arguments on.
WITHOUT_EXTRA_ARGS = {
    "stablegrad": Head(sg.stablegrad, tree, {"max_gain": 2.0}, {}),
    "balance_terms": Head(
        functools.partial(balance, power=0), trees_of_terms, {"decay": 0.5}, {}
    ),
}
heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
SGD = optax.sgd(0.1, momentum=0.9)


# --- Wrappers ---


def by_path(function):
    """A mask or labels, as a callable of the tree, from the names along each path."""

    def of_tree(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: function(*(key.key for key in path)), tree
        )

    return of_tree


everything = by_path(lambda layer, name: True)
in_first = by_path(lambda layer, name: layer == "first")


def itself(base):
    return base


def masked(base):
    return optax.masked(base, in_first)


def partitioned(by_name):
    labels = by_path(lambda layer, name: "a" if by_name(layer, name) else "b")
    return lambda base: optax.partition({"a": base, "b": optax.sgd(0.1)}, labels)


first_and_rest = partitioned(lambda layer, name: layer == "first")


def every_second(base):
    return optax.MultiSteps(base, every_k_schedule=2).gradient_transformation()


def finite_only(base):
    return optax.apply_if_finite(base, 2)


def snapshot(name):
    return optax.snapshot(name, sg.layer_scales)


def monitor(name):
    return optax.monitor({name: sg.layer_scales})


def schedule_free(base):
    return optax.contrib.schedule_free(base, learning_rate=0.1)


def lookahead(base):
    return optax.lookahead(base, sync_period=2, slow_step_size=0.5)


def injected(head):
    return optax.inject_hyperparams(head.factory)(**head.option)


def injected_chain(head, base):
    def factory(number):
        return optax.chain(head.factory(**dict.fromkeys(head.option, number)), base)

    (number,) = head.option.values()
    return optax.inject_hyperparams(factory)(number)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A way to put a transformation and a base optimizer together."""

    name: str  # what a user knows the wrapper by
    base: Callable = itself  # wraps the base
    both: Callable = itself  # wraps the chain of the head and the base
    head: Callable = Head.make  # makes the transformation of the head, wrapped
    chain: Callable = optax.chain  # puts them together
    of: dict[str, Head] = dataclasses.field(default_factory=lambda: HEADS)
    mask: Callable = everything  # what the head gets to see
    params: Callable = itself  # what it takes for parameters

    def build(self, head, base):
        return self.both(self.chain(self.head(head), self.base(base)))

    def plain(self, base):
        """The same without the head."""
        return self.both(self.base(base))


# Where a wrapper would take the terms for parameters.
ALONE = {"stablegrad": HEADS["stablegrad"]}
ROWS = {
    "sgd": Row("optax.sgd"),
    "adam": Row("optax.adam", lambda base: optax.adam(1e-2)),
    "lion": Row("optax.lion", lambda base: optax.lion(1e-3)),
    "muon": Row("optax.contrib.muon", lambda base: optax.contrib.muon(1e-2)),
    "chain-stablegrad": Row(
        "optax.chain",
        lambda base: optax.chain(sg.stablegrad(), base),
        of={"balance_terms": HEADS["balance_terms"]},
    ),
    "chain-named": Row(
        "optax.named_chain",
        chain=lambda head, base: optax.named_chain(("head", head), ("base", base)),
    ),
    "masked-head": Row(
        "optax.masked",
        head=lambda head: masked(head.make()),
        of=ALONE,
        mask=in_first,
    ),
    "masked-both": Row("optax.masked", both=masked, of=ALONE, mask=in_first),
    "masked-base": Row("optax.masked", masked),
    "partition-both": Row(
        "optax.partition", both=first_and_rest, of=ALONE, mask=in_first
    ),
    "partition-base": Row(
        "optax.partition", partitioned(lambda layer, name: name == "kernel")
    ),
    "MultiSteps-base": Row("optax.MultiSteps", every_second),
    "inject_hyperparams-both": Row(
        "optax.inject_hyperparams", head=itself, chain=injected_chain
    ),
    "inject_hyperparams-head": Row("optax.inject_hyperparams", head=injected),
    "apply_if_finite-both": Row("optax.apply_if_finite", both=finite_only, of=ALONE),
    "apply_if_finite-base": Row("optax.apply_if_finite", finite_only),
    "conditionally_transform-head": Row(
        "optax.conditionally_transform",
        head=lambda head: optax.conditionally_transform(
            head.make(), lambda step: step >= 0
        ),
        of=ALONE,
    ),
    "flatten-base": Row("optax.flatten", optax.flatten),
    "snapshot": Row("optax.snapshot", lambda base: optax.chain(snapshot("s"), base)),
    "monitor": Row("optax.monitor", lambda base: optax.chain(monitor("s"), base)),
    "schedule_free-both": Row("optax.contrib.schedule_free", both=schedule_free),
    "schedule_free-base": Row("optax.contrib.schedule_free", schedule_free),
    "lookahead-both": Row(
        "optax.lookahead",
        both=lookahead,
        of=WITHOUT_EXTRA_ARGS,
        params=optax.LookaheadParams.init_synced,
    ),
    "sam-base": Row(
        "optax.contrib.sam",
        lambda base: optax.contrib.sam(base, optax.sgd(0.05)),
        of=WITHOUT_EXTRA_ARGS,
    ),
}

# What these do not do in optax itself.
CHANGES_STATE = {"optax.monitor"}  # starts without its measurements
PROMOTES = {  # fail where promotion is strict
    "optax.MultiSteps",
    "optax.adam",
    "optax.contrib.muon",
    "optax.contrib.sam",
    "optax.lion",
    "optax.lookahead",
    "optax.monitor",
}
MEASURES_PARAMS = {"optax.flatten", "optax.snapshot", "optax.monitor"}  # in init
NEEDS_PARAMS = {
    "optax.contrib.muon",
    "optax.contrib.sam",
    "optax.contrib.schedule_free",
    "optax.inject_hyperparams",
    "optax.lion",
    "optax.lookahead",
}


def lookup(name):
    """optax's attribute; None where the installed version lacks it."""
    attributes = name.split(".")[1:]
    return functools.reduce(lambda x, a: getattr(x, a, None), attributes, optax)


rows = pytest.mark.parametrize(
    ("row", "head"),
    [
        pytest.param(
            row,
            head,
            id=f"{case}-{name}",
            marks=pytest.mark.skipif(
                lookup(row.name) is None,
                reason=f"optax {optax.__version__} has no {row.name}",
            ),
        )
        for case, row in ROWS.items()
        for name, head in row.of.items()
    ],
)


def test_the_compatibility_page_has_every_row_and_no_other():
    named = set(re.findall(r"`(optax\.[\w.]+)`", COMPATIBILITY_PAGE.read_text()))
    others = {"optax.scale_by_backtracking_linesearch"}
    assert named == {row.name for row in ROWS.values()} | others


def run(tx, gradients, *, params=None, traces=1, **extra_args):
    """The updates of each step, on parameters that follow them, and the last state."""
    if params is None:
        params = tree(100, jax.tree.leaves(gradients)[0].dtype)
    traced = []

    @jax.jit
    def update(grads, state, params):
        traced.append(state)
        return tx.update(grads, state, params, **extra_args)

    state = tx.init(params)
    all_updates = []
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    assert len(traced) == traces
    return all_updates, state


assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=1e-6)


def of_base(row, head, dtype):
    """What the base makes of the gradients that the head makes by itself."""

    def seen(made, grads):
        if row.mask is everything:
            return made
        return jax.tree.map(lambda m, a, b: a if m else b, row.mask(made), made, grads)

    by_hand = list(map(seen, head.alone(dtype), head.gradients(dtype)))
    return trained(row, row.plain(SGD), by_hand, dtype)


def trained(row, tx, gradients, dtype, **extra_args):
    traces = 2 if row.name in CHANGES_STATE else 1
    params = row.params(tree(100, dtype))
    return run(tx, gradients, params=params, traces=traces, **extra_args)[0]


def check_against_base(row, head, dtype="float32", **tolerances):
    extra_args = head.extra_args | ({"unknown": 1.0} if head.extra_args else {})
    tx = row.build(head, SGD)
    updates = trained(row, tx, head.gradients(dtype), dtype, **extra_args)
    expected = of_base(row, head, dtype)
    assert_close(updates, expected, **tolerances)
    chex.assert_trees_all_equal_dtypes(updates, expected)


@rows
def test_equals_the_base_on_what_it_makes_by_itself(row, head):
    """In one trace for all steps, and whatever else is handed to the chain."""
    check_against_base(row, head)


@heads
@pytest.mark.parametrize("dtype", ["complex64", "float64", "complex128"])
def test_every_precision(head, dtype):
    with jax.enable_x64(True):
        digits = {} if dtype == "complex64" else {"rtol": 1e-11, "atol": 1e-13}
        check_against_base(ROWS["sgd"], head, dtype, **digits)


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_types_of_updates_and_state_are_stable(row, head, dtype):
    promotion = "standard" if row.name in PROMOTES else "strict"
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion(promotion):
        tx = row.build(head, SGD)
        params, grads = row.params(tree(0, dtype)), head.gradient(0, dtype)
        state = tx.init(params)
        update = functools.partial(tx.update, **head.extra_args)
        updates, new_state = jax.eval_shape(update, grads, state, params)
        assert types(updates) == types(params)
        if row.name not in CHANGES_STATE:
            assert types(new_state) == types(state)
        if row.name not in NEEDS_PARAMS:
            without, _ = jax.eval_shape(update, grads, state)
            assert types(without) == types(params)
        if row.name not in MEASURES_PARAMS:
            same = optax.tree.map_params(tx, lambda x: x, state)
            chex.assert_trees_all_equal(same, state)


@heads
@pytest.mark.parametrize("scalar", [float, jnp.bfloat16, np.float64, jnp.float64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_arguments_of_any_dtype_leave_that_of_the_gradient(head, scalar, dtype):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        grads = head.gradient(0, dtype)
        extra_args = jax.tree.map(scalar, head.extra_args)
        inject = optax.inject_hyperparams(head.factory, hyperparam_dtype=jnp.float64)
        for tx in (head.make(), inject(**head.option)):
            state = tx.init(grads)
            update = functools.partial(tx.update, **extra_args)
            updates, new_state = jax.eval_shape(update, grads, state, grads)
            assert types(updates) == types(tree(0, dtype))
            assert types(new_state) == types(state)


# --- State ---


@heads
def test_state_is_read_and_mapped_by_optax_as_that_of_the_base(head):
    base = optax.adam(1e-2)
    tx = optax.chain(head.make(), base)
    state, alone = tx.init(tree()), base.init(tree())
    chex.assert_trees_all_equal(state[1], alone)
    for name in ["count", "mu", "nu"]:
        found, expected = (optax.tree.get(s, name) for s in (state, alone))
        chex.assert_trees_all_equal(found, expected)

    def add_one(tx, state):
        return optax.tree.map_params(tx, lambda x: x + 1, state)

    mapped = add_one(tx, state)
    chex.assert_trees_all_equal(mapped, (state[0], add_one(base, alone)))


def test_optax_finds_the_memory_and_the_weights_of_the_terms():
    head = HEADS["balance_terms"]
    _, (state,) = run(optax.chain(head.make()), head.gradients(), **head.extra_args)
    assert isinstance(state, sg.BalanceTermsState)
    assert optax.tree.get((state,), "weights") is state.weights
    assert optax.tree.get((state,), "counts") == dict.fromkeys(TERMS, STEPS)
    assert sg.stablegrad().init(tree()) == optax.EmptyState()


@heads
def test_init_takes_what_is_not_an_array(head):
    state = head.make().init(tree())
    masked = jax.eval_shape(tree) | {"first": optax.MaskedNode()}
    for params in (masked, None, (), {}):
        chex.assert_trees_all_equal(head.make().init(params), state)


@heads
def test_under_scan_and_vmap(head):
    """Steps in a scan, of two networks at once, are those of a loop over each."""
    tx = optax.chain(head.make(), SGD)
    networks = [head.gradients(), head.gradients()[::-1]]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves).reshape(2, STEPS, *leaves[0].shape),
        *[grads for network in networks for grads in network],
    )

    @jax.jit
    @jax.vmap
    def train(gradients):
        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params, **head.extra_args)
            return (optax.apply_updates(params, updates), state), updates

        params = tree(100)
        (_, state), updates = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return updates, state

    trained = train(stacked)
    for i, network in enumerate(networks):
        updates, state = jax.tree.map(lambda x, i=i: x[i], trained)
        one_by_one, last = run(tx, network, **head.extra_args)
        assert_close(updates, jax.tree.map(lambda *x: jnp.stack(x), *one_by_one))
        assert_close(state, last)


# --- Wrappers with a mathematics of their own ---


def zeros(grads):
    return jax.tree.map(jnp.zeros_like, grads)


def test_multi_steps_stays_finite_without_some_gradients():
    """It multiplies by zero what it does not want, which would keep a NaN."""
    tx = every_second(optax.chain(sg.stablegrad(), SGD))
    partial = tree() | {"first": zeros(tree()["first"])}
    updates, state = run(tx, [zeros(tree()), partial, partial, zeros(tree())])
    chex.assert_tree_all_finite((updates, state))


# With the base inside of it, or in front.
IN_FRONT_OR_INSIDE = [("both", "stablegrad")] + [("base", name) for name in HEADS]


@pytest.mark.parametrize(("case", "name"), IN_FRONT_OR_INSIDE)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_apply_if_finite_goes_on_as_if_a_bad_step_had_not_been(case, name, value):
    head = HEADS[name]
    tx = ROWS[f"apply_if_finite-{case}"].build(head, SGD)
    before, after, *_ = head.gradients()
    # Of a dict, the first entry by name: the first layer, or the boundary.
    first = min(before)
    bad = before | {first: jax.tree.map(lambda x: x.at[0].set(value), before[first])}
    updates, state = run(tx, [before, bad, after], **head.extra_args)
    without, _ = run(tx, [before, after], **head.extra_args)
    chex.assert_trees_all_equal(updates[1], zeros(tree()))
    assert optax.tree.get(state, "total_notfinite") == 1
    assert_close(updates[0], without[0])
    if name == "stablegrad":
        assert_close(updates[2], without[1])
    else:  # the other term has counted
        chex.assert_tree_all_finite(updates[2])
        assert optax.tree.get(state, "counts") == {"residual": 3, "boundary": 2}


@pytest.mark.parametrize(("case", "name"), IN_FRONT_OR_INSIDE)
def test_apply_if_finite_meets_no_nan_made_inside(case, name):
    """What is finite where it comes in is finite where the head hands it on."""
    head = HEADS[name]
    gradients = [
        jax.tree.map(lambda g, s=size: jnp.float32(s) * g, head.gradient())
        for size in (0.0, 1e-45, 1e-38, 1e-19, 1e16, 1e34)
    ]
    tx = ROWS[f"apply_if_finite-{case}"].build(head, SGD)
    updates, state = run(tx, gradients, **head.extra_args)
    chex.assert_tree_all_finite((updates, state))
    assert optax.tree.get(state, "total_notfinite") == 0


def test_an_injected_stack_axis_asks_for_static_args():
    tx = optax.inject_hyperparams(sg.stablegrad)(stack_axis=0)
    with pytest.raises(ValueError, match=r"stack_axis .* static_args"):
        jax.jit(tx.update)(tree(), tx.init(tree()))
    static = optax.inject_hyperparams(sg.stablegrad, static_args="stack_axis")
    run(static(stack_axis=0), [tree()])


@pytest.mark.parametrize("measure", [snapshot, monitor])
def test_scales_are_seen_before_and_after(measure):
    if lookup(f"optax.{measure.__name__}") is None:
        pytest.skip(f"optax {optax.__version__} has no {measure.__name__}")
    tx = optax.chain(measure("before"), sg.stablegrad(), measure("after"))
    _, state = run(tx, [tree()])
    before = {layer: np.std(tree()[layer]["kernel"]) for layer in ("first", "second")}
    assert_close(optax.tree.get(state, "before"), before)
    assert_close(optax.tree.get(state, "after"), {"first": 1.0, "second": 1.0})


def test_line_search():
    """Positive gains leave a direction of descent; its arguments pass StableGrad."""

    def loss(params):
        errors = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, tree())
        return sum(jax.tree.leaves(errors))

    search = optax.scale_by_backtracking_linesearch(20)
    tx = optax.chain(sg.stablegrad(), optax.sgd(1.0), search)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return optax.apply_updates(params, updates), state, value

    params, state, values = tree(100), tx.init(tree()), []
    for _ in range(20):
        params, state, value = step(params, state)
        values.append(float(value))
    assert all(np.diff(values) < 0)
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize("mask_of", [lambda mask: mask, lambda mask: lambda _: mask])
def test_a_callable_pytree_under_masked(mask_of):
    """An Equinox module is callable, and so is a mask of its structure."""
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    assert callable(mask)
    tx = optax.masked(sg.stablegrad(), mask_of(mask))
    updates, _ = tx.update(params, tx.init(params), params)
    rescaled = jax.tree.map(lambda g: g / np.std(g) if g.ndim == 2 else g, params)
    assert_close(updates, rescaled)
    eqx.apply_updates(model, updates)
