"""Trains a network on all devices of several processes. This is one of them.

Start it once for each process, with the same address, on which process 0 will listen:

    RUN="python multiprocess_worker.py --checkpoints /a/shared/directory"
    $RUN --coordinator 10.0.0.1:1234 --processes 2 --process 0
    $RUN --coordinator 10.0.0.1:1234 --processes 2 --process 1

If one of them dies the others end as well. Started again, they go on from the last
checkpoint, and so do fewer or more of them.
"""

import argparse
import itertools
import json
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import stablegrad_optax as sg

WIDTHS = (8, 32, 32, 8)
BATCH = 64
STOPPED = 3  # exit status


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--checkpoints", required=True, help="a directory that all processes see"
    )
    # What a failing machine looks like to the others, for the tests.
    parser.add_argument("--fail-at", type=int, help="step")
    return parser.parse_args()


# recipe: connect
def connect(options):
    """After this, jax.devices() are those of all processes."""
    # How CPUs talk to each other. GPUs and TPUs have means of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        options.coordinator,
        num_processes=options.processes,
        process_id=options.process,
        initialization_timeout=60,  # seconds in which all have to be there
        heartbeat_timeout_seconds=100,  # after which a silent one ends all others
    )


# end recipe


# recipe: placement
def leaf_sharding(leaf, mesh):
    """FSDP splits a leaf over its largest axis, if it can be split evenly."""
    names = [None] * leaf.ndim
    if leaf.ndim:
        axis = int(np.argmax(leaf.shape))
        if leaf.shape[axis] % mesh.size == 0:
            names[axis] = "data"
    return NamedSharding(mesh, P(*names))


def initial_state(key, tx):
    init = jax.nn.initializers.lecun_normal()
    params = [
        {"kernel": init(jax.random.fold_in(key, i), shape), "bias": jnp.zeros(shape[1])}
        for i, shape in enumerate(itertools.pairwise(WIDTHS))
    ]
    return params, tx.init(params)


def global_batch(step, mesh):
    """The batch of a step, of which each process reads its own part only."""
    size = BATCH // jax.process_count()
    start = size * jax.process_index()
    x = np.random.default_rng(step).normal(size=(BATCH, WIDTHS[0])).astype(np.float32)
    x = x[start : start + size]
    sharding = NamedSharding(mesh, P("data"))
    return tuple(
        jax.make_array_from_process_local_data(sharding, a) for a in (x, np.sin(2 * x))
    )


# end recipe


def predict(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def losses(params, x, y):
    """Of two fields, each of half the outputs."""
    errors = jnp.mean((predict(params, x) - y) ** 2, axis=0)
    return {"u": jnp.mean(errors[:4]), "v": 100 * jnp.mean(errors[4:])}


# recipe: training
def train(options):
    tx = optax.chain(sg.balance_terms(("u", "v")), sg.stablegrad(), optax.adam(3e-3))
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def init():
        return initial_state(jax.random.key(0), tx)

    shapes = jax.eval_shape(init)
    shardings = jax.tree.map(lambda x: leaf_sharding(x, mesh), shapes)

    def step_fn(state, batch):
        params, opt_state = state
        values, grads = sg.value_and_grad_of_terms(losses)(params, *batch)
        updates, opt_state = tx.update(grads, opt_state, params, values=values)
        return (optax.apply_updates(params, updates), opt_state), values

    step_fn = jax.jit(
        step_fn,
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, P())),  # values: everywhere
    )

    with checkpoint_manager(options.checkpoints) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            target = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                shapes,
                shardings,
            )
            state = checkpoints.restore(start, args=ocp.args.StandardRestore(target))
        else:
            state = jax.jit(init, out_shardings=shardings)()
        report(start=start, share_of_state=addressable_share(state))
        for step in range(start, options.steps):
            if step == options.fail_at:
                os.kill(os.getpid(), signal.SIGKILL)
            state, values = step_fn(state, global_batch(step, mesh))
            report(step=step, values=jax.tree.map(float, values))
            checkpoints.save(step + 1, args=ocp.args.StandardSave(state))


# end recipe


def report(**values):
    print(json.dumps(values), flush=True)


def addressable_share(tree):
    """The share of a tree's bytes that is on the devices of this process."""
    leaves = jax.tree.leaves(tree)
    here = sum(x.data.nbytes for leaf in leaves for x in leaf.addressable_shards)
    return here / sum(leaf.nbytes for leaf in leaves)


def checkpoint_manager(directory):
    return ocp.CheckpointManager(
        os.path.abspath(directory),
        options=ocp.CheckpointManagerOptions(
            save_interval_steps=4, max_to_keep=2, enable_async_checkpointing=False
        ),
    )


# recipe: main
def main():
    options = parse_arguments()
    if options.processes > 1:
        connect(options)
    try:
        train(options)
    except jax.errors.JaxRuntimeError as error:
        # The connections of a dead process are closed, and the next collective fails.
        reason = str(error).partition("\n")[0]
        print(
            f"process {options.process} of {options.processes} stopped, most likely "
            f"because another is gone: {reason}. Start all again to go on from the "
            "last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        # Not sys.exit, on which JAX would wait for the dead process.
        os._exit(STOPPED)


# end recipe


if __name__ == "__main__":
    main()
