"""What a well-behaved transformation owes optax: its wrappers, its types, its state.

A wrapper around StableGrad and a base optimizer must give what the base gives on
gradients that were rescaled by hand beforehand. `WRAPPED` says for each wrapper how it
is built, and what is left of it without StableGrad.
"""

import dataclasses
import functools
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stablegrad_optax as sg

STEPS = 3

BASES = {
    "optax.sgd": optax.sgd(0.1, momentum=0.9),
    "optax.adam": optax.adam(1e-2),
    "optax.lion": optax.lion(1e-3),
    "optax.contrib.muon": optax.contrib.muon(1e-2),
}


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


def gradients(**options):
    return [tree(seed, **options) for seed in range(STEPS)]


def rescaled(grads, reference=1.0, *, layers=("first", "second"), biases=True):
    """By hand, in NumPy and double precision: ρ/σ times each leaf of the layers."""

    def wide(x):
        return np.asarray(x).astype(np.promote_types(x.dtype, np.float64))

    def rescale(path, g):
        layer, name = (key.key for key in path)
        if layer not in layers or not (biases or name == "kernel"):
            return g
        gain = reference / np.std(wide(grads[layer]["kernel"]))
        return jnp.asarray(gain * wide(g), g.dtype)

    return jax.tree_util.tree_map_with_path(rescale, grads)


def by_path(function):
    """A mask or labels, as a callable of the tree, from the names along each path."""

    def of_tree(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: function(*(key.key for key in path)), tree
        )

    return of_tree


in_first = by_path(lambda layer, name: layer == "first")
is_kernel = by_path(lambda layer, name: name == "kernel")
layer_label = by_path(lambda layer, name: "a" if layer == "first" else "b")
kernel_label = by_path(lambda layer, name: "a" if name == "kernel" else "b")

first_only = functools.partial(rescaled, layers=["first"])


def alone(base):
    return base


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A way to put StableGrad and a base optimizer together."""

    name: str  # what a user knows the wrapper by
    build: Callable  # of the base optimizer
    plain: Callable = alone  # the same without StableGrad
    by_hand: Callable = rescaled  # the gradients that `plain` must get instead
    branches: bool = False  # on the data, with lax.cond


def clipped(base):
    return optax.chain(optax.clip_by_global_norm(1.0), base)


def clipped_by_hand(grads):
    norm = np.sqrt(sum(np.sum(np.abs(g) ** 2) for g in jax.tree.leaves(grads)))
    return jax.tree.map(lambda g: g / max(float(norm), 1.0), grads)


def masked_to_first(base):
    return optax.masked(base, in_first(tree()))


def partitioned(base, labels=kernel_label):
    return optax.partition({"a": base, "b": optax.sgd(0.1)}, labels)


def schedule_free(base):
    return optax.contrib.schedule_free(base, learning_rate=0.1)


def sam(base):
    return optax.contrib.sam(base, optax.sgd(0.05))


def finite_only(base):
    return optax.apply_if_finite(base, 2)


def after_stablegrad(wrapper=alone):
    return lambda base: optax.chain(sg.stablegrad(), wrapper(base))


def around_both(wrapper):
    return lambda base: wrapper(optax.chain(sg.stablegrad(), base))


def injected_chain(base):
    def factory(reference, group_by):
        return optax.chain(sg.stablegrad(reference, group_by=group_by), base)

    return optax.inject_hyperparams(factory)(reference=1.0, group_by="layer")


def injected_alone(base):
    inject = optax.inject_hyperparams(sg.stablegrad, static_args="group_by")
    tx = inject(optax.constant_schedule(1.0), group_by=lambda path: path[0])
    return optax.chain(tx, base)


def measured(base):
    return optax.chain(
        optax.snapshot("before", sg.layer_scales),
        sg.stablegrad(),
        optax.snapshot("after", sg.layer_scales),
        base,
    )


def monitored(base):
    return optax.chain(
        optax.monitor({"before": sg.layer_scales}),
        sg.stablegrad(),
        optax.monitor({"after": optax.measure_with_ema(sg.layer_scales, decay=0.9)}),
        base,
    )


WRAPPED = {
    "chain": Wrapped("optax.chain", after_stablegrad()),
    "chain-nested": Wrapped(
        "optax.chain",
        lambda base: optax.chain(optax.chain(sg.stablegrad()), optax.chain(base)),
    ),
    "chain-clip-before": Wrapped(
        "optax.chain",
        lambda base: clipped(optax.chain(sg.stablegrad(), base)),
        by_hand=lambda grads, *options: rescaled(clipped_by_hand(grads), *options),
    ),
    "chain-clip-after": Wrapped("optax.chain", after_stablegrad(clipped), clipped),
    "chain-named": Wrapped(
        "optax.named_chain",
        lambda base: optax.named_chain(("scale", sg.stablegrad()), ("base", base)),
    ),
    "masked-stablegrad": Wrapped(
        "optax.masked",
        lambda base: optax.chain(optax.masked(sg.stablegrad(), in_first), base),
        by_hand=first_only,
    ),
    "masked-stablegrad-to-kernels": Wrapped(
        "optax.masked",
        lambda base: optax.chain(optax.masked(sg.stablegrad(), is_kernel), base),
        by_hand=functools.partial(rescaled, biases=False),
    ),
    "masked-both": Wrapped(
        "optax.masked", around_both(masked_to_first), masked_to_first, first_only
    ),
    "masked-base": Wrapped(
        "optax.masked", after_stablegrad(masked_to_first), masked_to_first
    ),
    "partition-both": Wrapped(
        "optax.partition",
        around_both(functools.partial(partitioned, labels=layer_label)),
        functools.partial(partitioned, labels=layer_label),
        first_only,
    ),
    "partition-base": Wrapped(
        "optax.partition", after_stablegrad(partitioned), partitioned
    ),
    "multi_transform-base": Wrapped(
        "optax.multi_transform",
        lambda base: optax.chain(
            sg.stablegrad(),
            optax.multi_transform({"a": base, "b": optax.sgd(0.1)}, kernel_label),
        ),
        partitioned,
    ),
    "inject_hyperparams-both": Wrapped("optax.inject_hyperparams", injected_chain),
    "inject_hyperparams-stablegrad": Wrapped(
        "optax.inject_hyperparams", injected_alone
    ),
    "apply_if_finite-both": Wrapped(
        "optax.apply_if_finite", around_both(finite_only), finite_only, branches=True
    ),
    "apply_if_finite-base": Wrapped(
        "optax.apply_if_finite",
        after_stablegrad(finite_only),
        finite_only,
        branches=True,
    ),
    "conditionally_transform": Wrapped(
        "optax.conditionally_transform",
        lambda base: optax.chain(
            optax.conditionally_transform(sg.stablegrad(), lambda step: step >= 0),
            base,
        ),
        branches=True,
    ),
    "flatten-base": Wrapped(
        "optax.flatten", after_stablegrad(optax.flatten), optax.flatten
    ),
    "snapshot": Wrapped("optax.snapshot", measured),
    "monitor": Wrapped("optax.monitor", monitored),
    "schedule_free-both": Wrapped(
        "optax.contrib.schedule_free", around_both(schedule_free), schedule_free
    ),
    "schedule_free-base": Wrapped(
        "optax.contrib.schedule_free", after_stablegrad(schedule_free), schedule_free
    ),
    "sam-base": Wrapped("optax.contrib.sam", after_stablegrad(sam), sam),
}

# What these do not do in optax itself, StableGrad or not.
CHANGES_STATE = {"optax.monitor"}  # starts without its measurements
PROMOTES = {"optax.monitor", "optax.contrib.sam"}  # fails where promotion is strict
MEASURES_PARAMS = {"optax.flatten", "optax.snapshot", "optax.monitor"}  # in init
DROPS_EXTRA_ARGS = {"optax.contrib.sam"}
NEEDS_PARAMS = {
    "optax.inject_hyperparams",
    "optax.contrib.schedule_free",
    "optax.contrib.sam",
}


def lookup(name):
    """optax's attribute; None where the installed version lacks it."""
    attributes = name.split(".")[1:]
    return functools.reduce(lambda x, a: getattr(x, a, None), attributes, optax)


def compatible(kind, name, value, case):
    """A parameter with its mark, skipped where optax lacks the name."""
    lacks = f"optax {optax.__version__} has no {name}"
    marks = [
        pytest.mark.compatible(kind, name),
        pytest.mark.skipif(lookup(name) is None, reason=lacks),
    ]
    return pytest.param(value, marks=marks, id=case)


def wrappers(*endings, unless=()):
    cases = {
        case: wrapped
        for case, wrapped in WRAPPED.items()
        if case.endswith(endings or "") and wrapped.name not in unless
    }
    return pytest.mark.parametrize(
        "wrapped", [compatible("wrapper", w.name, w, case) for case, w in cases.items()]
    )


def bases(*names):
    return pytest.mark.parametrize(
        "base", [compatible("optimizer", n, BASES[n], n) for n in names or BASES]
    )


def run(tx, gradients, *, update=None, params=None, **extra_args):
    """The updates of each step, on parameters that follow them, and the last state."""
    if params is None:
        params = tree(100, gradients[0]["norm"]["scale"].dtype)
    update = update or tx.update
    state = tx.init(params)
    all_updates = []
    for grads in gradients:
        updates, state = update(grads, state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        all_updates.append(updates)
    return all_updates, state


def updates_of(*args, **options):
    return run(*args, **options)[0]


assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=1e-6)


def maybe_jit(tx, wrapped, base):
    """Loops and branches outside jit compile anew at each call."""
    compiled = wrapped.branches or base is BASES["optax.contrib.muon"]
    return jax.jit(tx.update) if compiled else tx.update


def jitted_once(tx):
    """The compiled update, which may be traced but once.

    chex.assert_max_traces counts functions of the same source as one.
    """
    traces = []

    @jax.jit
    def update(updates, state, params):
        traces.append(state)
        assert len(traces) == 1
        return tx.update(updates, state, params)

    return update


# One for all wrappers that leave the base alone.
@functools.cache
def expected(wrapped, base):
    plain = wrapped.plain(base)
    update = maybe_jit(plain, wrapped, base)
    by_hand = [wrapped.by_hand(g) for g in gradients()]
    updates = updates_of(plain, by_hand, update=update)
    # Scales that change from step to step show behind every optimizer.
    with pytest.raises(AssertionError):
        assert_close(updates, updates_of(plain, gradients(), update=update))
    return updates


def check_equals_by_hand(wrapped, base):
    tx = wrapped.build(base)
    updates = updates_of(tx, gradients(), update=maybe_jit(tx, wrapped, base))
    without = dataclasses.replace(wrapped, build=alone, name="")
    assert_close(updates, expected(without, base))


@wrappers()
@bases("optax.sgd", "optax.adam")
def test_equals_the_base_on_gradients_rescaled_by_hand(wrapped, base):
    check_equals_by_hand(wrapped, base)


@wrappers("chain", "both")
@bases("optax.lion", "optax.contrib.muon")
def test_equals_further_bases_on_gradients_rescaled_by_hand(wrapped, base):
    check_equals_by_hand(wrapped, base)


@wrappers(unless=DROPS_EXTRA_ARGS)
@bases("optax.sgd")
def test_reference_reaches_stablegrad(wrapped, base):
    by_hand = [wrapped.by_hand(g, 0.25) for g in gradients()]
    tx = wrapped.build(base)
    update = functools.partial(maybe_jit(tx, wrapped, base), reference=0.25)
    updates = updates_of(tx, gradients(), update=update, unknown=1.0)
    assert_close(updates, updates_of(wrapped.plain(base), by_hand))


@wrappers(unless=NEEDS_PARAMS)
@bases("optax.sgd")
def test_without_params(wrapped, base):
    tx = wrapped.build(base)
    updates, _ = tx.update(tree(), tx.init(tree()))
    assert_close(updates, updates_of(tx, [tree()])[0])


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def check_types(tx, params):
    state = jax.eval_shape(tx.init, params)
    updates, new_state = jax.eval_shape(tx.update, params, state, params)
    assert types(updates) == types(params)
    assert types(new_state) == types(state)


@wrappers(unless=CHANGES_STATE)
@bases("optax.adam")
@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]
)
def test_types_of_updates_and_state_are_stable(wrapped, base, dtype):
    check_types(wrapped.build(base), tree(dtype=dtype))


@wrappers(unless=PROMOTES)
@bases("optax.sgd")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_strict_promotion(wrapped, base, dtype):
    with jax.numpy_dtype_promotion("strict"):
        check_types(wrapped.build(base), tree(dtype=dtype))


# --- Wrappers with a mathematics of their own ---


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


multi_steps = pytest.mark.compatible("wrapper", "optax.MultiSteps")


@multi_steps
@bases()
def test_multi_steps_gives_the_base_on_the_mean_gradient(base):
    tx = optax.MultiSteps(optax.chain(sg.stablegrad(), base), every_k_schedule=2)
    halves = gradients(), [tree(seed) for seed in range(10, 10 + STEPS)]
    pairs = list(zip(*halves, strict=True))
    micro_steps = [grads for pair in pairs for grads in pair]
    update = jax.jit(tx.update)
    updates, state = run(tx, micro_steps, update=update, reference=0.25)
    chex.assert_trees_all_equal(
        updates[0::2], [jax.tree.map(jnp.zeros_like, tree())] * STEPS
    )
    by_hand = [rescaled(mean(pair), 0.25) for pair in pairs]
    assert_close(updates[1::2], updates_of(base, by_hand, update=jax.jit(base.update)))
    assert state.gradient_step == STEPS


@multi_steps
def test_multi_steps_behind_stablegrad_gives_the_mean_of_rescaled_gradients():
    """The other order is another algorithm: StableGrad is not linear."""
    base = optax.sgd(0.1)
    inner = optax.MultiSteps(base, every_k_schedule=STEPS).gradient_transformation()
    tx = optax.chain(sg.stablegrad(), inner)
    updates = updates_of(tx, gradients(), update=jax.jit(tx.update))[-1]
    by_hand = mean([rescaled(grads) for grads in gradients()])
    assert_close(updates, updates_of(base, [by_hand])[0])
    with pytest.raises(AssertionError):
        assert_close(updates, updates_of(base, [rescaled(mean(gradients()))])[0])


@multi_steps
@bases("optax.sgd", "optax.adam")
@pytest.mark.parametrize("missing", [["first"], ["first", "second", "norm"]])
def test_multi_steps_stays_finite_without_some_gradients(base, missing):
    """It multiplies by zero what it does not want, which would keep a NaN."""
    tx = optax.MultiSteps(optax.chain(sg.stablegrad(), base), every_k_schedule=2)
    nothing = jax.tree.map(jnp.zeros_like, tree())
    partial = tree() | {layer: nothing[layer] for layer in missing}
    micro_steps = [nothing, partial, partial, nothing]
    updates, state = run(tx, micro_steps, update=jax.jit(tx.update))
    chex.assert_tree_all_finite((updates, state))
    chex.assert_trees_all_equal(updates[1]["first"], nothing["first"])


def broken(layer, name, value):
    grads = tree(9)
    grads[layer][name] = grads[layer][name].at[0].set(value)
    return grads


@multi_steps
def test_multi_steps_skips_a_gradient_that_is_not_finite():
    base = optax.sgd(0.1, momentum=0.9)
    tx = optax.MultiSteps(
        optax.chain(sg.stablegrad(), base),
        every_k_schedule=2,
        should_skip_update_fn=optax.skip_not_finite,
    )
    first, second, _ = gradients()
    steps = [first, broken("second", "kernel", np.nan), second]
    updates = updates_of(tx, steps, update=jax.jit(tx.update))
    chex.assert_trees_all_equal(updates[1], jax.tree.map(jnp.zeros_like, first))
    assert_close(updates[2], updates_of(base, [rescaled(mean([first, second]))])[0])


apply_if_finite = pytest.mark.compatible("wrapper", "optax.apply_if_finite")


@apply_if_finite
@bases("optax.sgd", "optax.adam")
@pytest.mark.parametrize(
    "where", [("first", "kernel", np.nan), ("second", "bias", np.inf)]
)
def test_apply_if_finite_drops_a_gradient_that_is_not_finite(base, where):
    tx = finite_only(optax.chain(sg.stablegrad(), base))
    bad = broken(*where)
    before, after, _ = gradients()
    updates, state = run(tx, [before, bad, after], update=jax.jit(tx.update))
    chex.assert_trees_all_equal(updates[1], jax.tree.map(jnp.zeros_like, bad))
    by_hand = updates_of(base, [rescaled(before), rescaled(after)])
    assert_close([updates[0], updates[2]], by_hand)
    assert state.total_notfinite == 1


TINY, HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

SHAPES = {
    "equal": jnp.ones_like,
    "signs": jnp.sign,
    "one-hot": lambda g: jnp.zeros_like(g).at[(0,) * g.ndim].set(-1),
}


@apply_if_finite
@bases("optax.sgd", "optax.adam", "optax.lion")
def test_apply_if_finite_never_meets_a_nan_made_inside(base):
    """It looks at what comes in; what is finite there must be so when it goes out."""
    tx = finite_only(optax.chain(sg.stablegrad(), base))
    update = jitted_once(tx)
    for shape, size in itertools.product(SHAPES, [0.0, TINY / 4, TINY, 1.0, HUGE / 4]):
        grads = jax.tree.map(lambda g, s=shape, v=size: v * SHAPES[s](g), tree())
        (updates,), state = run(tx, [grads], update=update)
        chex.assert_tree_all_finite(updates)
        assert state.total_notfinite == 0, (shape, size)


@pytest.mark.parametrize("shape", ["equal", "signs"])
def test_the_largest_gradients_stay_finite(shape):
    """Above 8.5e37 the inverse of σ would be subnormal, which CPUs flush to zero."""
    grads = jax.tree.map(lambda g: HUGE * SHAPES[shape](g), tree())
    chex.assert_tree_all_finite(updates_of(sg.stablegrad(), [grads]))


inject_hyperparams = pytest.mark.compatible("wrapper", "optax.inject_hyperparams")


def mixed():
    return jax.tree_util.tree_map_with_path(
        lambda path, g: g.astype(jnp.bfloat16) if path[0].key == "first" else g, tree()
    )


@inject_hyperparams
@pytest.mark.parametrize(
    "make", [tree, lambda: tree(dtype=jnp.bfloat16), mixed], ids=["f32", "bf16", "both"]
)
def test_injected_options_follow_their_schedules(make):
    grads = make()
    bound = 0.5 / np.std(np.asarray(grads["second"]["kernel"], np.float64))
    inject = optax.inject_hyperparams(
        sg.stablegrad, static_args=("group_by", "statistic")
    )
    tx = inject(
        optax.linear_schedule(1.0, 3.0, 2),
        max_gain=optax.piecewise_constant_schedule(1e30, {2: bound / 1e30}),
        group_by="layer",
        statistic="std",
    )
    update = jitted_once(tx)
    state = tx.init(grads)
    for reference, bounded in [(1.0, False), (2.0, False), (3.0, True)]:
        updates, state = update(grads, state, grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
        second = 0.5 if bounded else reference
        by_hand = rescaled(
            rescaled(grads, reference, layers=["first"]), second, layers=["second"]
        )
        # Numbers come in the widest dtype of the tree, here as coarse as its leaves.
        chex.assert_trees_all_close(updates, by_hand, rtol=2e-2, atol=1e-2)


@inject_hyperparams
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_injected_reference_set_by_hand(dtype):
    tx = optax.inject_hyperparams(sg.stablegrad)(reference=1.0, group_by="leaf")
    grads = tree(dtype=dtype)
    state = tx.init(grads)
    state.hyperparams["reference"] = jnp.asarray(4.0, dtype)
    updates, _ = jax.jit(tx.update)(grads, state, grads)
    by_hand = rescaled(grads, 4.0, biases=False)
    chex.assert_trees_all_close(updates, by_hand, rtol=2e-2)


@pytest.mark.parametrize("options", [{}, {"is_weight": lambda path, leaf: True}])
def test_flatten_makes_one_layer_of_all(options):
    """A vector is no weight by default, so nothing is left to rescale."""
    tx = optax.flatten(sg.stablegrad(**options))
    grads = tree()
    updates, _ = tx.update(grads, tx.init(grads))
    scale = np.std(np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)]))
    gain = 1 / scale if options else 1.0
    assert_close(updates, jax.tree.map(lambda g: gain * g, grads))


@pytest.mark.parametrize(
    "build",
    [
        compatible("wrapper", "optax.snapshot", measured, "snapshot"),
        compatible("wrapper", "optax.monitor", monitored, "monitor"),
    ],
)
def test_scales_are_seen_before_and_after(build):
    tx = build(optax.sgd(0.1))
    _, state = run(tx, [tree()])
    before = {layer: np.std(tree()[layer]["kernel"]) for layer in ("first", "second")}
    assert_close(optax.tree.get(state, "before"), before)
    after = optax.tree.get(state, "after")
    assert_close(after, {"first": 1.0, "second": 1.0})


@pytest.mark.compatible("wrapper", "optax.lookahead")
@bases("optax.sgd", "optax.adam", "optax.lion")
def test_lookahead(base):
    def lookahead(base):
        return optax.lookahead(base, sync_period=2, slow_step_size=0.5)

    params = optax.LookaheadParams.init_synced(tree(100))
    wrapped = lookahead(optax.chain(sg.stablegrad(), base))
    updates = updates_of(wrapped, gradients(), params=params)
    by_hand = [rescaled(grads) for grads in gradients()]
    assert_close(updates, updates_of(lookahead(base), by_hand, params=params))


def test_lbfgs_on_rescaled_gradients():
    """What composes, not what is advisable: its secants assume a true gradient."""
    base = optax.lbfgs(0.1, memory_size=2, linesearch=None)
    tx = optax.chain(sg.stablegrad(), base)
    by_hand = [rescaled(grads) for grads in gradients()]
    updates = updates_of(tx, gradients(), update=jax.jit(tx.update))
    assert_close(updates, updates_of(base, by_hand, update=jax.jit(base.update)))


@pytest.mark.compatible("wrapper", "optax.scale_by_backtracking_linesearch")
def test_line_search():
    """Positive gains leave a direction of descent; its arguments pass StableGrad."""
    target = tree()

    def loss(params):
        errors = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
        return optax.tree_utils.tree_sum(errors)

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


# --- State ---


NAMES = ["count", "mu", "nu", "trace", "learning_rate", "reference"]


@bases()
def test_state_of_the_chain_holds_that_of_the_base_and_nothing_else(base):
    tx = optax.chain(sg.stablegrad(), base)
    state, alone = tx.init(tree()), base.init(tree())
    assert state[0] == sg.StableGradState()
    chex.assert_trees_all_equal(state[1], alone)

    def found(state, name):
        pairs = optax.tree.get_all_with_path(state, name)
        return [value for _, value in pairs]

    for name in NAMES:
        chex.assert_trees_all_equal(found(state, name), found(alone, name))

    def add_one(tx, state):
        return optax.tree.map_params(tx, lambda x: x + 1, state)

    mapped = add_one(tx, state)
    assert mapped[0] == sg.StableGradState()
    chex.assert_trees_all_equal(mapped[1], add_one(base, alone))


@wrappers(unless=MEASURES_PARAMS)
@bases("optax.sgd")
def test_map_params_on_wrapped_states(wrapped, base):
    tx = wrapped.build(base)
    state = tx.init(tree())
    same = optax.tree.map_params(tx, lambda x: x, state)
    chex.assert_trees_all_equal(same, state)


def test_init_takes_what_is_not_an_array():
    tx = sg.stablegrad()
    abstract = jax.eval_shape(tree)
    masked = abstract | {"first": optax.MaskedNode()}
    for params in (abstract, masked, None, (), {}):
        assert tx.init(params) == sg.StableGradState()


@bases("optax.sgd", "optax.adam")
def test_masked_nodes(base):
    """What optax.masked hands to those inside it."""
    tx = optax.chain(sg.stablegrad(), base)
    params, grads = (tree(seed) | {"first": optax.MaskedNode()} for seed in (0, 1))
    jitted = [jax.jit(tx.update), jax.jit(base.update)]
    updates, _ = jitted[0](grads, tx.init(params), params)
    assert updates["first"] == optax.MaskedNode()
    by_hand = rescaled(tree(1)) | {"first": optax.MaskedNode()}
    assert_close(updates, jitted[1](by_hand, base.init(params), params)[0])


@bases("optax.adam", "optax.contrib.muon")
def test_shardings_are_those_of_the_base(base):
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))

    def sharding(leaf):
        spec = P("model") if leaf.ndim == 1 else P(None, "model")
        return NamedSharding(mesh, spec)

    params = jax.device_put(tree(), jax.tree.map(sharding, tree()))
    tx = optax.chain(sg.stablegrad(), base)

    def shardings(tx):
        state = tx.init(params)
        updates, new_state = jax.jit(tx.update)(params, state, params)
        return [
            [leaf.sharding for leaf in jax.tree.leaves(x)]
            for x in (updates, state, new_state)
        ]

    got, alone = shardings(tx), shardings(base)
    for ours, theirs in zip(got, alone, strict=True):
        assert ours == theirs
    assert got[0] == [sharding(leaf) for leaf in jax.tree.leaves(params)]


@wrappers("chain", "both", "conditionally_transform", "sam-base")
@bases("optax.adam")
def test_one_trace_for_all_steps(wrapped, base):
    tx = wrapped.build(base)
    run(tx, gradients(), update=jitted_once(tx))


@bases("optax.sgd", "optax.adam")
def test_state_and_params_may_be_donated(base):
    tx = optax.chain(sg.stablegrad(), base)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(step):
        params = tree(100)
        state = tx.init(params)
        for grads in gradients():
            before = params, state
            params, state = step(params, state, grads)
        return params, before

    kept, _ = train(jax.jit(step))
    donated, before = train(jax.jit(step, donate_argnums=(0, 1)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    chex.assert_trees_all_equal(donated, kept)


# --- Arguments and leaves ---


def test_extra_arguments_are_passed_on():
    received = {}

    def spy(updates, state, params=None, **extra_args):
        received.update(extra_args)
        return updates, state

    last = optax.GradientTransformationExtraArgs(optax.identity().init, spy)
    tx = optax.chain(sg.stablegrad(), last)
    extra_args = {"value": 1.5, "value_fn": sum, "reference": 2.0, "tags": {"a": 1}}
    updates, _ = tx.update(tree(), tx.init(tree()), **extra_args)
    assert received == extra_args
    assert_close(updates, rescaled(tree(), 2.0))


def test_with_extra_args_support_leaves_it_as_it_is():
    tx = sg.stablegrad()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert optax.with_extra_args_support(tx) is tx


def test_python_and_numpy_scalars():
    tx = optax.chain(sg.stablegrad(), optax.sgd(0.5))
    kernel = np.array([[1.0, 5.0]], np.float32)  # with std 2
    grads = {"kernel": kernel, "bias": 3.0, "temperature": np.float32(-4.0)}
    updates, _ = tx.update(grads, tx.init(grads))
    expected = {"kernel": -kernel / 4, "bias": -0.75, "temperature": 1.0}
    assert_close(updates, expected)


@pytest.mark.compatible("wrapper", "optax.masked")
@bases("optax.sgd")
@pytest.mark.parametrize("mask_of", [lambda mask: mask, lambda mask: lambda _: mask])
def test_a_callable_pytree_under_masked(base, mask_of):
    """An Equinox module is callable, and so is a mask of its structure."""
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    grads = eqx.filter_grad(lambda model: jnp.sum(model(jnp.ones(2)) ** 2))(model)
    params = eqx.filter(model, eqx.is_inexact_array)
    assert callable(model)
    mask = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    tx = optax.chain(optax.masked(sg.stablegrad(), mask_of(mask)), base)
    updates, _ = tx.update(grads, tx.init(params), params)

    def by_hand(g):
        return g / np.std(g) if g.ndim == 2 else g

    expected, _ = base.update(jax.tree.map(by_hand, grads), base.init(params), params)
    assert_close(updates, expected)
    eqx.apply_updates(model, updates)


def test_x64_in_a_process_of_its_own():
    script = Path(__file__).with_name("contract_x64_checks.py")
    result = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "contract checks passed" in result.stdout
