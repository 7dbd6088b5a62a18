"""The demo: a 64-layer PINN of the Poisson equation, with and without StableGrad."""
