"""optax's own tests of its optimizers, run on optimizers behind ours.

They ship in its wheel, and look an optimizer up by its name in `optax._src.alias`,
where `sgd` and `adam` are replaced by chains. Those modules are private and move: this
is a canary, and test_optax_contract.py the gate.
"""

import functools
import importlib
import itertools
import re
import sys
import unittest
import warnings
from unittest import mock

import optax
import pytest

import stablegrad_optax as sg

CLASSES = {
    "AliasTest": "optax._src.alias_test",
    "ContribTest": "optax.contrib._common_test",
}
# mechanize learns a step size from gradients that shrink towards the minimum.
# Older versions run each of some cases in several ways, of which jit is enough.
LEFT_OUT = re.compile("mechanize|explicit_dtype|without_|with_device|with_pmap")


def upstream_class(name):
    """None where upstream has moved."""
    # alias_test wants scikit-learn for L-BFGS only.
    is_absent = sys.modules.setdefault("sklearn", stub := mock.MagicMock()) is stub
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(importlib.import_module(CLASSES[name]), name)
    except (ImportError, AttributeError):
        return None
    finally:
        if is_absent:
            del sys.modules["sklearn"]


def stablegrad():
    # Vectors are no weights by default. A vector beside a matrix takes its gain, which
    # has no bound where the gradient of the matrix is zero but for rounding.
    return sg.stablegrad(is_weight=lambda path, leaf: True, max_gain=1e3)


def balance_terms():
    """Of one gradient, twice."""
    split = optax.stateless(lambda grads, params: {"a": grads, "b": grads})
    return optax.chain(split, sg.balance_terms(("a", "b"), power=0))


HEADS = {stablegrad: ("sgd", "adam"), balance_terms: ("sgd",)}


def behind(head, optimizer):
    # Smaller steps for Adam, whose rates are large: they do not shrink at the minimum.
    smaller = optax.scale(0.1 if optimizer is optax.adam else 1.0)

    @functools.wraps(optimizer)  # upstream reads the signature
    def build(*args, **kwargs):
        return optax.chain(head(), optimizer(*args, **kwargs), smaller)

    return build


def cases():
    """Upstream's cases of the two optimizers, which tell their parameters."""
    for name, head in itertools.product(CLASSES, HEADS):
        upstream = upstream_class(name)
        of_head = re.compile(f"opt_name='({'|'.join(HEADS[head])})'")
        for test in unittest.defaultTestLoader.getTestCaseNames(upstream or object):
            parameters = (getattr(upstream, test).__doc__ or "").partition("\n")[0]
            if of_head.search(parameters) and not LEFT_OUT.search(test + parameters):
                case = f"{name}.{test}-{head.__name__}"
                yield pytest.param(upstream, test, head, id=case)


CASES = list(cases())


@pytest.mark.parametrize(("upstream", "test", "head"), CASES)
def test_case(upstream, test, head):
    replaced = {name: behind(head, getattr(optax, name)) for name in ("sgd", "adam")}
    with mock.patch.multiple("optax._src.alias", **replaced):
        upstream(test).debug()


@pytest.mark.skipif(optax.__version__ > "0.2.8", reason="may have moved since")
def test_upstream_was_found():
    found = {
        (upstream.__name__, head)
        for upstream, _, head in (case.values for case in CASES)
    }
    assert found == set(itertools.product(CLASSES, HEADS))
