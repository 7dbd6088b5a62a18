"""A deep physics-informed network for the Poisson equation on a square.

    python examples/minimal_pinn.py

It needs Flax (pip install '.[examples]') and prints the layers that StableGrad finds,
and then the loss terms and the relative L2 error.

The problem is Δu = f on [-1, 1]² with u = 0 on the boundary, where f is chosen such
that u = sin(πx) sin(πy). The network has 16 hidden tanh layers, without residual
connections or normalisation layers. There are no loss weights to choose.

For an equation of your own, change `exact`, `source`, `sample_points` and `loss_terms`;
for another domain the grid of `relative_error`, and for another number of coordinates
or fields the first and last of the widths in `Network`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import stablegrad_optax as sg

DEPTH = 16  # hidden layers
WIDTH = 32
STEPS = 2000
STEPS_PER_CALL = 200  # and between two printed lines
LEARNING_RATE = 2e-3
INTERIOR_POINTS = 128
BOUNDARY_POINTS = 32


class Network(nnx.Module):
    """u(x, y), for points of shape (..., 2)."""

    def __init__(self, rngs: nnx.Rngs):
        # The residual is made of derivatives: this keeps their size with depth.
        kernel_init = sg.initializers.critical(jnp.tanh)
        linear = partial(nnx.Linear, kernel_init=kernel_init, rngs=rngs)
        widths = [2] + DEPTH * [WIDTH]
        self.hidden = nnx.List(map(linear, widths[:-1], widths[1:]))
        self.last = linear(WIDTH, 1)

    def __call__(self, points: jax.Array) -> jax.Array:
        x = points
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return self.last(x)[..., 0]


def exact(points: jax.Array) -> jax.Array:
    return jnp.prod(jnp.sin(jnp.pi * points), axis=-1)


def source(points: jax.Array) -> jax.Array:
    return -2 * jnp.pi**2 * exact(points)


def laplacian(u: Callable[[jax.Array], jax.Array], points: jax.Array) -> jax.Array:
    """Σ ∂²u/∂xᵢ² at all points at once, faster than by the trace of jax.hessian."""

    def second_derivative(axis):
        direction = jnp.broadcast_to(axis, points.shape)

        def first_derivative(points):
            return jax.jvp(u, (points,), (direction,))[1]

        return jax.jvp(first_derivative, (points,), (direction,))[1]

    return sum(second_derivative(axis) for axis in jnp.eye(points.shape[-1]))


def sample_points(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """New collocation points, inside the square and on its boundary."""
    number = INTERIOR_POINTS + BOUNDARY_POINTS
    points = jax.random.uniform(key, (number, 2), minval=-1, maxval=1)
    interior, boundary = jnp.split(points, [INTERIOR_POINTS])
    # Projected from the centre onto the edges, where they are uniform as well.
    return interior, boundary / jnp.abs(boundary).max(axis=1, keepdims=True)


def loss_terms(model: Network, key: jax.Array) -> dict[str, jax.Array]:
    """Mean squares of the residual and of the boundary values."""
    interior, boundary = sample_points(key)
    residual = laplacian(model, interior) - source(interior)
    return {
        "residual": jnp.mean(residual**2),
        "boundary": jnp.mean(model(boundary) ** 2),
    }


@nnx.jit
def train(model: Network, optimizer: nnx.Optimizer, keys: jax.Array) -> dict:
    """One step for each key, all on the device; returns the means of the terms."""

    def step(carry, key):
        model, optimizer = carry
        graph, params = nnx.split(model)

        def losses(params):
            return loss_terms(nnx.merge(graph, params), key)

        values, grads = sg.value_and_grad_of_terms(losses)(params)
        optimizer.update(model, grads, values=values)
        return carry, values

    _, values = nnx.scan(step)((model, optimizer), keys)
    return jax.tree.map(jnp.mean, values)


@nnx.jit
def relative_error(model: Network) -> jax.Array:
    """Relative L2 error on a grid."""
    axis = jnp.linspace(-1, 1, 101)
    points = jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
    expected = exact(points)
    return jnp.linalg.norm(model(points) - expected) / jnp.linalg.norm(expected)


# GPUs and TPUs multiply float32 matrices at a lower precision by default, and second
# derivatives through many layers amplify the rounding error.
@jax.default_matmul_precision("highest")
def main(steps: int = STEPS, seed: int = 0) -> float:
    """Trains the network, and returns its relative L2 error."""
    rngs = nnx.Rngs(seed)
    model = Network(rngs)
    print(sg.tabulate(nnx.state(model, nnx.Param)))
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    balance = sg.balance_terms(("residual", "boundary"))
    tx = optax.chain(balance, sg.stablegrad(), optax.adam(schedule))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    keys = jax.random.split(rngs(), steps)
    for start in range(0, steps, STEPS_PER_CALL):
        chunk = keys[start : start + STEPS_PER_CALL]
        step = start + len(chunk)
        losses = train(model, optimizer, chunk)
        error = float(relative_error(model))
        terms = "  ".join(f"{name} {x:.1e}" for name, x in losses.items())
        print(f"step {step:5}  {terms}  relative L2 error {error:.4f}")
    return error


if __name__ == "__main__":
    main()
