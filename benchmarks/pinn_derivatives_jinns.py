"""The same Laplacian and loss by jinns: its network, its operators, its loss."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.pinn_derivatives_methods import (
    SCALE,
    Candidate,
    Case,
    UnavailableError,
    layers,
    source,
)


def method(mode: str) -> Callable[[Case], Candidate]:
    """The loss of jinns, by one of its operators."""

    def build(case):
        try:
            import equinox as eqx
            import jinns
        except ImportError:
            raise UnavailableError("jinns is not installed") from None

        params, _ = case.inputs()
        mlp = eqx.filter_eval_shape(
            eqx.nn.MLP,
            *(2, 1, case.width, case.depth),
            activation=jnp.tanh,
            key=jax.random.key(0),
        )
        weights = [x for kernel, bias in layers(params) for x in (kernel.T, bias)]
        mlp = eqx.tree_at(
            lambda m: [x for layer in m.layers for x in (layer.weight, layer.bias)],
            mlp,
            weights,
        )
        u, nn_params = jinns.nn.PINN_MLP.create(
            eqx_network=mlp,
            eq_type="PDEStatio",
            input_transform=lambda x, _: SCALE * x,
        )

        def at(x, u, params):
            if mode != "fwd":
                return jinns.loss.laplacian_rev(x, u, params, method=mode)
            # Documented for separable networks, which take many points at once.
            return jinns.loss.laplacian_fwd(
                x[None], lambda x, p: u(x[0], p)[None], params, eq_type=u.eq_type
            )[0, 0]

        class Poisson(jinns.loss.PDEStatio):
            def equation(self, x, u, params):
                return (at(x, u, params) - source(x))[None]

        params = jinns.parameters.Params(nn_params=nn_params, eq_params={})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Missing boundary condition")
            loss = jinns.loss.LossPDEStatio(
                u=u,
                dynamic_loss=Poisson(),
                loss_weights=jinns.loss.LossWeightsPDEStatio(dyn_loss=1.0),
                params=params,
            )

        def own_loss(params, points):
            batch = jinns.data.PDEStatioBatch(domain_batch=points, border_batch=None)
            return loss.evaluate(params, batch)[0]

        def laplacian(params, points):
            return jax.vmap(lambda x: at(x, u, params))(points)

        return Candidate(laplacian, params, own_loss)

    return build


def methods() -> dict[str, Callable[[Case], Candidate]]:
    """Each of its ways to a Laplacian."""
    modes = ("fwd", "trace_hessian_x", "loop")
    return {f"jinns, {mode}": method(mode) for mode in modes}
