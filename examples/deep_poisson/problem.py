"""The Poisson problem Δu = f on [-1, 1]² with u = 0 on the boundary.

f is chosen such that u(x, y) = sin(πx) sin(πy).
"""

import jax
import jax.numpy as jnp


def exact(points: jax.Array) -> jax.Array:
    """The solution at points of shape (n, 2)."""
    return jnp.prod(jnp.sin(jnp.pi * points), axis=-1)


def source(points: jax.Array) -> jax.Array:
    """The right-hand side f = -2π² u."""
    return -2 * jnp.pi**2 * exact(points)


def sample_interior(key: jax.Array, number: int) -> jax.Array:
    """Uniform collocation points, shape (number, 2)."""
    return jax.random.uniform(key, (number, 2), minval=-1, maxval=1)


def sample_boundary(key: jax.Array, number: int) -> jax.Array:
    """Uniform points on the four edges, shape (number, 2)."""
    along_key, edge_key = jax.random.split(key)
    along = jax.random.uniform(along_key, (number,), minval=-1, maxval=1)
    edge = jax.random.randint(edge_key, (number,), 0, 4)
    across = jnp.where(edge % 2 == 0, -1.0, 1.0)
    horizontal = jnp.stack([along, across], axis=-1)
    return jnp.where((edge < 2)[:, None], horizontal, horizontal[:, ::-1])


def grid(resolution: int) -> jax.Array:
    """A regular grid for evaluation, shape (resolution, resolution, 2)."""
    axis = jnp.linspace(-1, 1, resolution)
    return jnp.stack(jnp.meshgrid(axis, axis), axis=-1)
