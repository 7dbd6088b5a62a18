"""A ResNet without normalisation layers on the handwritten digits of scikit-learn.

Run it with

    python examples/minimal_image_classifier.py

It needs Flax and scikit-learn (pip install '.[examples]') and runs on a CPU, GPU or
TPU. It prints the layers that StableGrad finds, and then the training loss and the test
accuracy after each epoch.

SGD moves each layer in proportion to its gradient, so StableGrad's gains decide how
fast a layer learns. They bring all layers to the scale of the prediction gradient, the
paper's reference, which is a by-product of the backward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import stablegrad_optax as sg

WIDTH = 32  # channels of every layer
BLOCKS_PER_STAGE = 2
EPOCHS = 12
BATCH_SIZE = 64
LEARNING_RATE = 0.2


def conv(in_channels: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        WIDTH,
        (3, 3),
        use_bias=False,
        # Keeps the size of activations through convolution and ReLU.
        kernel_init=sg.initializers.variance_preserving(nnx.relu),
        rngs=rngs,
    )


class Block(nnx.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = conv(WIDTH, rngs)
        self.conv2 = conv(WIDTH, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x + self.conv2(nnx.relu(self.conv1(x))))


class ResNet(nnx.Module):
    """Stages of residual blocks at 8 x 8, 4 x 4 and 2 x 2 pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = conv(1, rngs)
        self.blocks = nnx.List(Block(rngs) for _ in range(3 * BLOCKS_PER_STAGE))
        self.classifier = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(images))
        for i, block in enumerate(self.blocks):
            if i > 0 and i % BLOCKS_PER_STAGE == 0:
                x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
            x = block(x)
        return self.classifier(x.mean(axis=(1, 2)))


def loss_fn(logits: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def train_step(
    model: ResNet, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    graphdef, params = nnx.split(model, nnx.Param)

    def predict(params, images, labels):
        return nnx.merge(graphdef, params)(images)

    value_and_grad = sg.value_and_grad_with_reference(predict, loss_fn)
    loss, grads, reference = value_and_grad(params, images, labels)
    optimizer.update(model, grads, reference=reference)
    return loss


@nnx.jit
def accuracy(model: ResNet, images: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(model(images).argmax(axis=-1) == labels)


def main(epochs: int = EPOCHS, seed: int = 0) -> float:
    """Trains the network, and returns its accuracy on the test images."""
    digits = load_digits()
    images = jnp.asarray(digits.images[..., None] / 16, jnp.float32)
    labels = jnp.asarray(digits.target)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0
    )
    steps_per_epoch = len(train) // BATCH_SIZE
    steps = epochs * steps_per_epoch

    model = ResNet(nnx.Rngs(seed))
    print(sg.tabulate(nnx.state(model, nnx.Param)))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, warmup_steps=steps // 10, decay_steps=steps
    )
    tx = optax.chain(sg.stablegrad(), optax.sgd(schedule, momentum=0.9))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        order = rng.permutation(train)
        batches = order[: steps_per_epoch * BATCH_SIZE].reshape(-1, BATCH_SIZE)
        losses = [train_step(model, optimizer, images[i], labels[i]) for i in batches]
        loss = np.mean(losses)
        tested = float(accuracy(model, images[test], labels[test]))
        print(f"epoch {epoch:2}  loss {loss:.4f}  test accuracy {tested:.4f}")
    return tested


if __name__ == "__main__":
    main()
