"""The Laplacian of one network, by each method that a user of JAX could take.

All of them differentiate the same function: tanh layers with the weights of the
training program's network. Where a method works best with layers written out one by
one, or comes with a network of its own, it gets that.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from examples.pinn import operators
from examples.pinn.network import DeepNetwork
from examples.pinn.objective import CPU_BLOCK

# Of DeepNetwork's standardised coordinates on [-1, 1]².
SCALE = math.sqrt(3)

Laplacian = Callable[[Any, jax.Array], jax.Array]
"""Maps parameters and points of shape (n, 2) to Δu, of shape (n,)."""


class UnavailableError(Exception):
    """A method that cannot run here, and why."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The network and the points; the same numbers in every process."""

    depth: int
    width: int
    points: int

    @property
    def network(self) -> DeepNetwork:
        return DeepNetwork(self.depth, self.width, (-1.0, -1.0), (1.0, 1.0))

    def apply(
        self,
        params: Any,
        points: jax.Array,
        sweep: operators.Sweep = operators.NOTHING,
    ) -> dict[str, jax.Array]:
        """The training program's network: "u" and the sweep's derivatives."""
        return cast(Any, self.network.apply(params, points, sweep))

    def inputs(self) -> tuple[Any, jax.Array]:
        """Parameters and points."""
        keys = jax.random.split(jax.random.key(0), 3)
        points = jax.random.uniform(keys[0], (self.points, 2), minval=-1.0)
        params = self.network.init(keys[1], points[:1])
        leaves, tree = jax.tree.flatten(params)
        # Biases are zero at first: a wrong treatment of them would not show.
        noise = jax.random.split(keys[2], len(leaves))
        leaves = [
            x + 0.02 * jax.random.normal(key, x.shape)
            for x, key in zip(leaves, noise, strict=True)
        ]
        return jax.tree.unflatten(tree, leaves), points


def source(points: jax.Array) -> jax.Array:
    """The f of Δu = f at points of shape (..., 2)."""
    return -2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * points), axis=-1)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method that is ready to be compiled."""

    laplacian: Laplacian
    params: Any
    own_loss: Callable[[Any, jax.Array], jax.Array] | None = None
    """The loss as the method's library computes it."""

    def loss(self, params: Any, points: jax.Array) -> jax.Array:
        """The mean square of the residual."""
        if self.own_loss is not None:
            return self.own_loss(params, points)
        return jnp.mean((self.laplacian(params, points) - source(points)) ** 2)


def layers(params: Any) -> list[tuple[jax.Array, jax.Array]]:
    """Kernel and bias of each layer, from a DeepNetwork's parameters."""
    tree = params["params"]
    pairs = [(tree["first"]["kernel"], tree["first"]["bias"])]
    if "hidden" in tree:
        hidden = tree["hidden"]
        pairs += zip(hidden["kernel"], hidden["bias"], strict=True)
    return [*pairs, (tree["last"]["kernel"], tree["last"]["bias"])]


def unrolled(params: Any, points: jax.Array) -> jax.Array:
    """The network with its layers written out one by one; points of shape (..., 2)."""
    (kernel, bias), *rest = layers(params)
    x = (SCALE * points) @ kernel + bias
    for kernel, bias in rest:
        x = jnp.tanh(x) @ kernel + bias
    return x[..., 0]


def ours(block: int | None) -> Callable[[Case], Candidate]:
    """One sweep through the scanned layers, in blocks of points."""
    sweep = operators.Sweep.of({"laplacian": operators.laplacian(2)})

    def build(case):
        def laplacian(params, points):
            def inside(x):
                return case.apply(params, x, sweep)["laplacian"]

            return operators.in_blocks(inside, points, block)

        return Candidate(laplacian, case.inputs()[0])

    return build


def nested_jvp(params: Any, points: jax.Array, u: Any = unrolled) -> jax.Array:
    """∂_v² along each axis by a jvp of a jvp."""
    result = operators.nested_derivatives(
        lambda x: u(params, x), points, {"laplacian": operators.laplacian(2)}
    )
    return result["laplacian"]


def scanned_nested_jvp(case: Case) -> Candidate:
    """The same of the training program's network."""

    def u(params, point):
        return case.apply(params, point[None])["u"][0]

    def laplacian(params, points):
        return nested_jvp(params, points, u)

    return Candidate(laplacian, case.inputs()[0])


def hessian(params: Any, points: jax.Array) -> jax.Array:
    """The trace of jax.hessian."""

    def at(x):
        return jnp.trace(jax.hessian(lambda x: unrolled(params, x))(x))

    return jax.vmap(at)(points)


def taylor_mode(params: Any, points: jax.Array) -> jax.Array:
    """∂_v² along each axis by jax.experimental.jet; it has no rule for scan."""
    try:
        from jax.experimental import jet
    except ImportError as error:
        raise UnavailableError(f"no jax.experimental.jet: {error}") from None

    def along(v):
        series = (jnp.broadcast_to(v, points.shape), jnp.zeros_like(points))
        _, (_, second) = jet.jet(lambda x: unrolled(params, x), (points,), (series,))
        return second

    return jnp.sum(jax.vmap(along)(jnp.eye(2, dtype=points.dtype)), axis=0)


def forward_laplacian(params: Any, points: jax.Array) -> jax.Array:
    """The forward Laplacian of folx, by interpretation of the network's jaxpr."""
    try:
        import folx
    except ImportError:
        raise UnavailableError("folx is not installed") from None

    def at(x):
        return folx.forward_laplacian(lambda x: unrolled(params, x))(x).laplacian

    return jax.vmap(at)(points)


def plain(laplacian: Laplacian) -> Callable[[Case], Candidate]:
    """A method that takes the parameters as they are."""

    def build(case):
        params, points = case.inputs()
        # Where a package is missing, it is found out here.
        jax.eval_shape(laplacian, params, points)
        return Candidate(laplacian, params)

    return build


def block() -> int | None:
    """The points that the training program takes at once."""
    return CPU_BLOCK if jax.default_backend() == "cpu" else None


def methods() -> dict[str, Callable[[Case], Candidate]]:
    """Each method by name; the first is what the others are compared with."""
    return {
        "ours": ours(block()),
        "ours, unblocked": ours(None),
        "nested jvp, scanned": scanned_nested_jvp,
        "nested jvp": plain(nested_jvp),
        "jax.hessian": plain(hessian),
        "jax.experimental.jet": plain(taylor_mode),
        "folx": plain(forward_laplacian),
    }


def exact_laplacian(case: Case) -> np.ndarray:
    """Nested forward mode in double precision, of the float32 weights and points."""
    inputs = jax.tree.map(np.asarray, case.inputs())
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), inputs)
        return np.asarray(jax.jit(nested_jvp)(*wide))
