"""The network of docs/remove_batchnorm.md, with BatchNorm and with what replaces it.

python -m benchmarks.remove_batchnorm [--out FILE.json]

All methods train with SGD with momentum, the same schedule, rates and seeds, on the
handwritten digits of scikit-learn.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from flax import nnx
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import stablegrad_optax as sg
from benchmarks import common
from examples.remove_batchnorm import after, before

Network = before.ResNet | after.ResNet


def deleted(blocks: int, width: int, rngs: nnx.Rngs) -> after.ResNet:
    """The network without BatchNorm, but with the weights that it had before."""
    model = after.ResNet(blocks, width, rngs)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv):
            init = nnx.initializers.lecun_normal()  # Flax's default
            module.kernel[...] = init(rngs.params(), module.kernel.shape)
    return model


METHODS: dict[str, tuple[Callable[..., Network], optax.GradientTransformation]] = {
    "BatchNorm": (before.ResNet, optax.identity()),
    "deleted, nothing else": (deleted, optax.identity()),
    "deleted, StableGrad": (deleted, sg.stablegrad()),
    "new weights": (after.ResNet, optax.identity()),
    "new weights, clip": (after.ResNet, optax.clip_by_global_norm(1.0)),
    "new weights, AGC": (after.ResNet, optax.adaptive_grad_clip(0.01)),
    "new weights, StableGrad": (after.ResNet, sg.stablegrad()),
}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """A ResNet on digits, with BatchNorm and with what replaces it."""

    blocks: int = 8
    width: int = 16
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    seeds: int = 3
    epochs: int = 10
    batch_size: int = 64


def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def trainer(name: str, options: Options, steps: int) -> Callable[..., Network]:
    """Trains a method at a rate, with a seed; compiled once for all of them."""
    make_network, control = METHODS[name]
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)

    def optimizer(rate):
        sgd = optax.sgd(lambda count: rate * schedule(count), momentum=0.9)
        return optax.with_extra_args_support(optax.chain(control, sgd))

    @nnx.jit
    def step(network, state, images, labels, rate):
        def loss_fn(network):
            logits = network(images)
            return loss(logits, labels), logits

        (_, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(network)
        # The paper's reference, which only stablegrad takes.
        reference = sg.reference_scale(jax.grad(loss)(logits, labels))
        params = nnx.state(network, nnx.Param)
        updates, state = optimizer(rate).update(
            grads, state, params, reference=reference
        )
        nnx.update(network, optax.apply_updates(params, updates))
        return state

    def train(rate, seed, batches):
        network = make_network(options.blocks, options.width, nnx.Rngs(seed))
        state = optimizer(rate).init(nnx.state(network, nnx.Param))
        for images, labels in batches:
            state = step(network, state, images, labels, rate)
        network.eval()  # BatchNorm takes its running statistics
        return network

    return train


@nnx.jit
def accuracy(network: Network, images: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(network(images).argmax(axis=-1) == labels)


def main(options: Options) -> None:
    digits = load_digits()
    images = np.float32(digits.images[..., None] / 16)
    images, test_images, labels, test_labels = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    per_epoch = len(images) // options.batch_size

    def batches(seed):
        rng = np.random.default_rng(seed)
        for _ in range(options.epochs):
            order = rng.permutation(len(images))[: per_epoch * options.batch_size]
            for i in order.reshape(per_epoch, -1):
                yield images[i], labels[i]

    runs: list[dict[str, Any]] = []
    table = Table("", *map(str, options.rates), title="median test accuracy by rate")
    for name in METHODS:
        train = trainer(name, options, options.epochs * per_epoch)
        medians = []
        for rate in track(options.rates, name):
            networks = [train(rate, i, batches(i)) for i in range(options.seeds)]
            scores = [float(accuracy(n, test_images, test_labels)) for n in networks]
            runs.append({"method": name, "lr": rate, "test_accuracy": scores})
            medians.append(f"{np.median(scores):.3f}")
        table.add_row(name, *medians)
    rich.print(table)
    common.save(options, {"runs": runs})


if __name__ == "__main__":
    common.run(Options, main)
