"""What the transformations owe optax: its wrappers, its types, its state.

A base optimizer behind one of them, in any wrapper, must give what it gives on the
gradients that the transformation makes by itself. `ROWS` says how each is built, and
what is left of it without the transformation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stablegrad_optax as sg

STEPS = 4
TERMS = ("residual", "boundary")


def tree(seed=0, dtype=np.float32):
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


def trees_of_terms(seed=0, dtype=np.float32):
    return {name: tree(10 * k + seed, dtype) for k, name in enumerate(TERMS)}


@dataclasses.dataclass(frozen=True)
class Head:
    """A transformation at the head of a chain, and what it is fed."""

    make: Callable[..., optax.GradientTransformationExtraArgs]
    gradient: Callable[..., Any]  # of seed and dtype
    extra_args: dict[str, Any]
    option: dict[str, float]  # a number that leaves everything as it is

    def gradients(self, dtype=np.float32):
        return [self.gradient(seed, dtype) for seed in range(STEPS)]

    def alone(self, gradients):
        """The gradients that it makes of them."""
        return run(self.make(), gradients, **self.extra_args)[0]


HEADS = {
    "stablegrad": Head(sg.stablegrad, tree, {"reference": 0.25}, {"max_gain": 1e6}),
    "balance_terms": Head(
        functools.partial(sg.balance_terms, TERMS),
        trees_of_terms,
        {"values": {"residual": 4.0, "boundary": 1.0}},
        {"decay": 0.99},
    ),
}
STABLEGRAD, BALANCE = HEADS.values()
heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)

BASES = {
    "optax.sgd": optax.sgd(0.1, momentum=0.9),
    "optax.adam": optax.adam(1e-2),
    "optax.lion": optax.lion(1e-3),
    "optax.contrib.muon": optax.contrib.muon(1e-2),
}
SGD = BASES["optax.sgd"]


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


def injected_chain(head, base):
    def factory(number):
        option = dict.fromkeys(head.option, number)
        return optax.chain(head.make(**option), base)

    (number,) = head.option.values()
    return optax.inject_hyperparams(factory)(number)


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to put a transformation and a base optimizer together."""

    name: str  # what a user knows the wrapper by
    build: Callable  # of the head and the base
    plain: Callable = itself  # the same without the head
    heads: tuple[str, ...] = tuple(HEADS)
    mask: Callable = everything  # what the head gets to see


def behind(name, wrapper, heads=tuple(HEADS)):
    def build(head, base):
        return optax.chain(head.make(), wrapper(base))

    return Row(name, build, wrapper, heads)


def around_both(name, wrapper, heads=tuple(HEADS), mask=everything):
    def build(head, base):
        return wrapper(optax.chain(head.make(), base))

    return Row(name, build, wrapper, heads, mask)


def around_head(name, wrapper, mask=everything):
    def build(head, base):
        return optax.chain(wrapper(head.make()), base)

    return Row(name, build, heads=ALONE, mask=mask)


ALONE = ("stablegrad",)  # where a wrapper would take the terms for parameters
ROWS = {
    "chain": behind("optax.chain", itself),
    "chain-stablegrad": behind(
        "optax.chain",
        lambda base: optax.chain(sg.stablegrad(), base),
        ("balance_terms",),
    ),
    "chain-named": Row(
        "optax.named_chain",
        lambda head, base: optax.named_chain(("head", head.make()), ("base", base)),
    ),
    "masked-head": around_head("optax.masked", masked, in_first),
    "masked-both": around_both("optax.masked", masked, ALONE, in_first),
    "masked-base": behind("optax.masked", masked),
    "partition-both": around_both("optax.partition", first_and_rest, ALONE, in_first),
    "partition-base": behind(
        "optax.partition", partitioned(lambda layer, name: name == "kernel")
    ),
    "MultiSteps-base": behind("optax.MultiSteps", every_second),
    "inject_hyperparams-both": Row("optax.inject_hyperparams", injected_chain),
    "inject_hyperparams-head": Row(
        "optax.inject_hyperparams",
        lambda head, base: optax.chain(
            optax.inject_hyperparams(head.make)(**head.option), base
        ),
    ),
    "apply_if_finite-both": around_both("optax.apply_if_finite", finite_only, ALONE),
    "apply_if_finite-base": behind("optax.apply_if_finite", finite_only),
    "conditionally_transform-head": around_head(
        "optax.conditionally_transform",
        lambda head: optax.conditionally_transform(head, lambda step: step >= 0),
    ),
    "flatten-base": behind("optax.flatten", optax.flatten),
    "snapshot": behind(
        "optax.snapshot", lambda base: optax.chain(snapshot("scales"), base)
    ),
    "monitor": behind(
        "optax.monitor", lambda base: optax.chain(monitor("scales"), base)
    ),
    "schedule_free-both": around_both("optax.contrib.schedule_free", schedule_free),
    "schedule_free-base": behind("optax.contrib.schedule_free", schedule_free),
}

# What these do not do in optax itself.
CHANGES_STATE = {"optax.monitor"}  # starts without its measurements
PROMOTES = {"optax.monitor", "optax.MultiSteps"}  # fails where promotion is strict
MEASURES_PARAMS = {"optax.flatten", "optax.snapshot", "optax.monitor"}  # in init
NEEDS_PARAMS = {"optax.inject_hyperparams", "optax.contrib.schedule_free"}


def lookup(name):
    """optax's attribute; None where the installed version lacks it."""
    attributes = name.split(".")[1:]
    return functools.reduce(lambda x, a: getattr(x, a, None), attributes, optax)


def compatible(kind, name, *values, case=None):
    """A parameter with its mark, skipped where optax lacks the name."""
    lacks = f"optax {optax.__version__} has no {name}"
    marks = [
        pytest.mark.compatible(kind, name),
        pytest.mark.skipif(lookup(name) is None, reason=lacks),
    ]
    return pytest.param(*values, marks=marks, id=case or name)


rows = pytest.mark.parametrize(
    ("row", "head"),
    [
        compatible("wrapper", row.name, row, HEADS[head], case=f"{case}-{head}")
        for case, row in ROWS.items()
        for head in row.heads
    ],
)
bases = pytest.mark.parametrize(
    "base", [compatible("optimizer", name, base) for name, base in BASES.items()]
)


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


def check_against_base(row, head, base, gradients, **tolerances):
    tx, plain = row.build(head, base), row.plain(base)
    traces = 2 if row.name in CHANGES_STATE else 1
    updates, _ = run(tx, gradients, traces=traces, unknown=1.0, **head.extra_args)

    def seen(made, grads):
        if row.mask is everything:
            return made
        return jax.tree.map(lambda m, a, b: a if m else b, row.mask(made), made, grads)

    by_hand = list(map(seen, head.alone(gradients), gradients))
    expected, _ = run(plain, by_hand, traces=traces)
    assert_close(updates, expected, **tolerances)
    chex.assert_trees_all_equal_dtypes(updates, expected)


@rows
def test_equals_the_base_on_what_it_makes_by_itself(row, head):
    """In one trace for all steps, and whatever else is handed to the chain."""
    check_against_base(row, head, SGD, head.gradients())


@heads
@bases
def test_every_base(head, base):
    check_against_base(ROWS["chain"], head, base, head.gradients())


@heads
@pytest.mark.parametrize("dtype", ["complex64", "float64", "complex128"])
def test_every_precision(head, dtype):
    with jax.enable_x64(True):
        digits = {} if dtype == "complex64" else {"rtol": 1e-11, "atol": 1e-13}
        check_against_base(ROWS["chain"], head, SGD, head.gradients(dtype), **digits)


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_types_of_updates_and_state_are_stable(row, head, dtype):
    promotion = "standard" if row.name in PROMOTES else "strict"
    with jax.enable_x64(dtype == "float64"), jax.numpy_dtype_promotion(promotion):
        tx = row.build(head, SGD)
        params, grads = tree(dtype=dtype), head.gradient(dtype=dtype)
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
        grads = head.gradient(dtype=dtype)
        extra_args = jax.tree.map(scalar, head.extra_args)
        inject = optax.inject_hyperparams(head.make, hyperparam_dtype=jnp.float64)
        for tx in (head.make(), inject(**head.option)):
            state = tx.init(grads)
            update = functools.partial(tx.update, **extra_args)
            updates, new_state = jax.eval_shape(update, grads, state, grads)
            assert types(updates) == types(tree(dtype=dtype))
            assert types(new_state) == types(state)


# --- State ---


@heads
@bases
def test_state_is_read_and_mapped_by_optax_as_that_of_the_base(head, base):
    tx = optax.chain(head.make(), base)
    state, alone = tx.init(tree()), base.init(tree())
    chex.assert_trees_all_equal(state[1], alone)
    for name in ["count", "mu", "nu", "trace", "learning_rate"]:
        found, expected = (
            [value for _, value in optax.tree.get_all_with_path(s, name)]
            for s in (state, alone)
        )
        chex.assert_trees_all_equal(found, expected)

    def add_one(tx, state):
        return optax.tree.map_params(tx, lambda x: x + 1, state)

    mapped = add_one(tx, state)
    chex.assert_trees_all_equal(mapped, (state[0], add_one(base, alone)))


def test_optax_finds_the_memory_and_the_weights_of_the_terms():
    _, state = run(
        optax.chain(BALANCE.make(), SGD), BALANCE.gradients(), **BALANCE.extra_args
    )
    assert optax.tree.get(state, "weights") is state[0].weights
    assert optax.tree.get(state, "counts") == dict.fromkeys(TERMS, STEPS)
    assert STABLEGRAD.make().init(tree()) == optax.EmptyState()


@heads
def test_init_takes_what_is_not_an_array(head):
    state = head.make().init(tree())
    abstract = jax.eval_shape(tree)
    masked = abstract | {"first": optax.MaskedNode()}
    for params in (abstract, masked, None, (), {}):
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

    for i, network in enumerate(networks):
        updates, state = jax.tree.map(lambda x, i=i: x[i], train(stacked))
        expected, last = run(tx, network, **head.extra_args)
        assert_close(updates, jax.tree.map(lambda *x: jnp.stack(x), *expected))
        assert_close(state, last)


# --- Wrappers with a mathematics of their own ---


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def zeros(grads):
    return jax.tree.map(jnp.zeros_like, grads)


multi_steps = pytest.mark.compatible("wrapper", "optax.MultiSteps")
apply_if_finite = pytest.mark.compatible("wrapper", "optax.apply_if_finite")


@multi_steps
def test_multi_steps_gives_stablegrad_the_mean_gradient():
    """Not linear, so that the other order is another algorithm."""
    grads = STABLEGRAD.gradients()
    updates, _ = run(every_second(optax.chain(sg.stablegrad(), SGD)), grads)
    by_hand = run(sg.stablegrad(), [mean(grads[:2]), mean(grads[2:])])[0]
    assert_close(updates[1::2], run(SGD, by_hand)[0])


@multi_steps
def test_multi_steps_stays_finite_without_some_gradients():
    """It multiplies by zero what it does not want, which would keep a NaN."""
    tx = every_second(optax.chain(sg.stablegrad(), SGD))
    partial = tree() | {"first": zeros(tree()["first"])}
    updates, state = run(tx, [zeros(tree()), partial, partial, zeros(tree())])
    chex.assert_tree_all_finite((updates, state))


@apply_if_finite
@pytest.mark.parametrize(
    ("case", "head"),
    [("both", "stablegrad"), ("base", "stablegrad"), ("base", "balance_terms")],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_apply_if_finite_goes_on_as_if_a_bad_step_had_not_been(case, head, value):
    head = HEADS[head]
    tx = ROWS[f"apply_if_finite-{case}"].build(head, SGD)
    before, after, *_ = head.gradients()
    # Of a dict, the first entry by name: the first layer, or the boundary.
    name = min(before)
    bad = before | {name: jax.tree.map(lambda x: x.at[0].set(value), before[name])}
    updates, state = run(tx, [before, bad, after], **head.extra_args)
    expected, _ = run(tx, [before, after], **head.extra_args)
    chex.assert_trees_all_equal(updates[1], zeros(tree()))
    assert optax.tree.get(state, "total_notfinite") == 1
    assert_close(updates[0], expected[0])
    if head is STABLEGRAD:
        assert_close(updates[2], expected[1])
    else:  # the other term has counted
        chex.assert_tree_all_finite(updates[2])
        assert optax.tree.get(state, "counts") == {"residual": 3, "boundary": 2}


@pytest.mark.compatible("wrapper", "optax.inject_hyperparams")
def test_an_injected_stack_axis_asks_for_static_args():
    tx = optax.inject_hyperparams(sg.stablegrad)(stack_axis=0)
    with pytest.raises(ValueError, match=r"stack_axis .* static_args"):
        jax.jit(tx.update)(tree(), tx.init(tree()))
    static = optax.inject_hyperparams(sg.stablegrad, static_args="stack_axis")
    run(static(stack_axis=0), [tree()])


@pytest.mark.parametrize("options", [{}, {"is_weight": lambda path, leaf: True}])
def test_flatten_around_stablegrad_makes_one_layer_of_all(options):
    """A vector is no weight by default, so nothing is left to rescale."""
    (updates,), _ = run(optax.flatten(sg.stablegrad(**options)), [tree()])
    scale = np.std(np.concatenate([np.ravel(g) for g in jax.tree.leaves(tree())]))
    gain = 1 / scale if options else 1.0
    assert_close(updates, jax.tree.map(lambda g: gain * g, tree()))


@pytest.mark.parametrize(
    "measure",
    [
        compatible("wrapper", "optax.snapshot", snapshot),
        compatible("wrapper", "optax.monitor", monitor),
    ],
)
def test_scales_are_seen_before_and_after(measure):
    tx = optax.chain(measure("before"), sg.stablegrad(), measure("after"))
    _, state = run(tx, [tree()])
    before = {layer: np.std(tree()[layer]["kernel"]) for layer in ("first", "second")}
    assert_close(optax.tree.get(state, "before"), before)
    assert_close(optax.tree.get(state, "after"), {"first": 1.0, "second": 1.0})


def lookahead_around(make):
    chain = optax.chain(make(), SGD)
    return optax.lookahead(chain, sync_period=2, slow_step_size=0.5)


def before_sam(make):
    return optax.chain(make(), optax.contrib.sam(SGD, optax.sgd(0.05)))


@pytest.mark.parametrize(
    ("build", "params"),
    [
        compatible(
            "wrapper",
            "optax.lookahead",
            lookahead_around,
            optax.LookaheadParams.init_synced(tree(100)),
        ),
        compatible("wrapper", "optax.contrib.sam", before_sam, tree(100)),
    ],
)
@pytest.mark.parametrize("name", HEADS)
def test_wrappers_that_take_no_extra_arguments(build, params, name):
    """Without a reference or values to be handed on."""
    options = {"power": 0} if name == "balance_terms" else {}
    make = functools.partial(HEADS[name].make, **options)
    gradients = HEADS[name].gradients()
    updates, _ = run(build(make), gradients, params=params)
    by_hand, _ = run(make(), gradients)
    expected, _ = run(build(optax.identity), by_hand, params=params)
    assert_close(updates, expected)


@pytest.mark.compatible("wrapper", "optax.scale_by_backtracking_linesearch")
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

    params = tree(100)
    state = tx.init(params)
    values = []
    for _ in range(20):
        params, state, value = step(params, state)
        values.append(float(value))
    assert all(np.diff(values) < 0)
    assert values[-1] < 0.1 * values[0]


# --- Arguments and leaves ---


@heads
def test_extra_arguments_are_passed_on(head):
    received = {}

    def spy(updates, state, params=None, **extra_args):
        received.update(extra_args)
        return updates, state

    last = optax.GradientTransformationExtraArgs(optax.identity().init, spy)
    tx = optax.chain(head.make(), last)
    extra_args = head.extra_args | {"value_fn": sum, "tags": {"a": 1}}
    update = functools.partial(tx.update, **extra_args)
    jax.eval_shape(update, head.gradient(), tx.init(tree()))
    assert received == extra_args


@pytest.mark.compatible("wrapper", "optax.masked")
@pytest.mark.parametrize("mask_of", [lambda mask: mask, lambda mask: lambda _: mask])
def test_a_callable_pytree_under_masked(mask_of):
    """An Equinox module is callable, and so is a mask of its structure."""
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    assert callable(mask)
    tx = optax.masked(sg.stablegrad(), mask_of(mask))
    updates, _ = tx.update(params, tx.init(params), params)
    expected = jax.tree.map(lambda g: g / np.std(g) if g.ndim == 2 else g, params)
    assert_close(updates, expected)
    eqx.apply_updates(model, updates)
