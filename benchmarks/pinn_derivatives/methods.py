"""The Laplacian of one network, by each method that a user of JAX could take.

All but ours get the layers unrolled, which suits them best; "nested jvp, scanned" shows
by how much. A method whose package is missing raises ImportError when it is traced.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from examples.pinn import operators
from examples.pinn.network import DeepNetwork
from examples.pinn.objective import CPU_BLOCK

Function = Callable[[Any, jax.Array], jax.Array]
"""Maps parameters and points of shape (n, 2) to values of shape (n,)."""

LAPLACIAN = {"laplacian": operators.laplacian(2)}


def network_of(depth: int, width: int) -> DeepNetwork:
    """The network of examples/pinn, whose hidden layers are scanned."""
    return DeepNetwork(depth, width, (-1.0, -1.0), (1.0, 1.0))


def inputs(depth: int, width: int, number: int) -> tuple[Any, jax.Array]:
    """Parameters, and points of shape (number, 2)."""
    key = jax.random.key(0)
    points = jax.random.uniform(key, (number, 2), minval=-1.0)
    return network_of(depth, width).init(key, points[:1]), points


def layers(params: Any) -> list[tuple[jax.Array, jax.Array]]:
    """Kernel and bias of each layer."""
    tree = params["params"]
    hidden = tree.get("hidden", {"kernel": (), "bias": ()})
    return [
        (tree["first"]["kernel"], tree["first"]["bias"]),
        *zip(hidden["kernel"], hidden["bias"], strict=True),
        (tree["last"]["kernel"], tree["last"]["bias"]),
    ]


def scanned(
    params: Any, points: jax.Array, sweep: operators.Sweep | None = None
) -> Any:
    """The network as it is: "u" and the derivatives of the sweep."""
    (first, _), *hidden, _ = layers(params)
    return network_of(1 + len(hidden), first.shape[1]).apply(params, points, sweep)


def unrolled(params: Any, points: jax.Array) -> jax.Array:
    """The same network without a scan, at points of shape (..., 2)."""
    (kernel, bias), *rest = layers(params)
    # DeepNetwork standardises coordinates.
    x = (math.sqrt(3) * points) @ kernel + bias
    for kernel, bias in rest:
        x = jnp.tanh(x) @ kernel + bias
    return x[..., 0]


def sweep(params: Any, points: jax.Array) -> jax.Array:
    """One sweep through the scanned layers, in blocks as in training."""
    u = partial(scanned, params, sweep=operators.Sweep.of(LAPLACIAN))
    block = CPU_BLOCK if jax.default_backend() == "cpu" else None
    return operators.in_blocks(u, points, block)["laplacian"]


def nested_jvp(params: Any, points: jax.Array, u: Function = unrolled) -> jax.Array:
    """A jvp of a jvp along each axis."""
    found = operators.nested_derivatives(partial(u, params), points, LAPLACIAN)
    return found["laplacian"]


def hessian(params: Any, points: jax.Array) -> jax.Array:
    """The trace of jax.hessian."""
    at = jax.hessian(partial(unrolled, params))
    return jax.vmap(lambda x: jnp.trace(at(x)))(points)


def taylor_mode(params: Any, points: jax.Array) -> jax.Array:
    """The second Taylor coefficient along each axis; jet has no rule for scan."""
    from jax.experimental import jet

    def along(v):
        series = (jnp.broadcast_to(v, points.shape), jnp.zeros_like(points))
        _, (_, second) = jet.jet(partial(unrolled, params), (points,), (series,))
        return second

    return jnp.sum(jax.vmap(along)(jnp.eye(2, dtype=points.dtype)), axis=0)


def forward_laplacian(params: Any, points: jax.Array) -> jax.Array:
    """The forward Laplacian of folx, which interprets the network's jaxpr."""
    import folx

    at = folx.forward_laplacian(partial(unrolled, params))
    return jax.vmap(lambda x: at(x).laplacian)(points)


def jinns_forward(params: Any, points: jax.Array) -> jax.Array:
    """The operator of jinns that takes all points at once."""
    import jinns

    def u(points, params):
        return unrolled(params, points)[:, None]

    return jinns.loss.laplacian_fwd(points, u, params, eq_type="PDEStatio")[:, 0]


def jinns_reverse(method: str, params: Any, points: jax.Array) -> jax.Array:
    """The operator of jinns that takes a single point."""
    import jinns

    def at(x):
        return jinns.loss.laplacian_rev(
            x, lambda x, params: unrolled(params, x), params, method, "PDEStatio"
        )

    return jax.vmap(at)(points)


def deepxde(mode: str, params: Any, points: jax.Array) -> jax.Array:
    """The operators of DeepXDE, by one of its modes of differentiation."""
    os.environ["DDE_BACKEND"] = "jax"  # read when DeepXDE is imported
    import deepxde as dde

    def u(x):
        return unrolled(params, x)[..., None]

    dde.config.autodiff = mode  # read by its operators
    u_xx, u_yy = (dde.grad.hessian((u(points), u), points, i=i, j=i) for i in (0, 1))
    dde.grad.clear()
    return (u_xx[0] + u_yy[0])[:, 0]


METHODS: dict[str, Function] = {
    "ours": sweep,
    "nested jvp, scanned": partial(
        nested_jvp, u=lambda params, x: scanned(params, x[None])["u"][0]
    ),
    "nested jvp": nested_jvp,
    "jax.hessian": hessian,
    "jax.experimental.jet": taylor_mode,
    "folx": forward_laplacian,
    "jinns, fwd": jinns_forward,
    "jinns, trace_hessian_x": partial(jinns_reverse, "trace_hessian_x"),
    "jinns, loop": partial(jinns_reverse, "loop"),
    "DeepXDE, forward": partial(deepxde, "forward"),
    "DeepXDE, reverse": partial(deepxde, "reverse"),
}
"""The Laplacian by each; the first is what the others are compared with."""
