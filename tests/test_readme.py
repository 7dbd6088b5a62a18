"""What the README shows is run, and what it says was measured is in the records."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def names_of_blocks():
    names = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
        names.setdefault("first", names["tx"])
    return names


def training_data():
    keys = jax.random.split(jax.random.key(0), 8)
    widths = [2] + 6 * [16]
    hidden = [
        {"kernel": jax.random.normal(key, (n, m)) / np.sqrt(n), "bias": jnp.zeros(m)}
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=False)
    ]
    params = {
        "hidden": hidden,
        "last": {"kernel": jax.random.normal(keys[6], (16, 1)) / 4},
    }
    x = jax.random.normal(keys[7], (32, 2))
    return params, x, x[:, :1] * x[:, 1:]


def test_the_chain_before_adam_trains():
    names = names_of_blocks()
    assert "optax.chain(sg.stablegrad(), optax.adam(1e-3))" in BLOCKS[0]
    params, x, y = training_data()
    tx, state = names["first"], names["first"].init(params)

    def loss(params):
        return names["loss"](names["predict"](params, x, y), x, y)

    before = loss(params)
    update = jax.jit(tx.update)
    for _ in range(100):
        updates, state = update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert loss(params) < before / 2


def test_the_form_for_loss_terms_trains():
    names = {}
    exec(compile(BLOCKS[1], "README.md", "exec"), names)
    params, x, _ = training_data()
    state = names["tx"].init(params)
    history = []
    for _ in range(100):
        params, state, values = names["train_step"](params, state, x)
        history.append(values)
    for term in ("residual", "boundary"):
        assert history[-1][term] < history[0][term] / 2


def test_the_sgd_form_trains():
    names = names_of_blocks()
    assert "reference=reference" in BLOCKS[2]
    params, x, y = training_data()
    state = names["tx"].init(params)
    values = []
    for _ in range(100):
        params, state, value = names["train_step"](params, state, x, y)
        values.append(value)
    assert values[-1] < values[0] / 2


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def table_rows(text, first_column):
    """The cells of a Markdown table's rows, by its first column."""
    lines = text.split(f"| {first_column} |")[1].splitlines()[2:]
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = cells
    return rows


def test_the_overhead_table_is_the_record():
    record = json.loads((ROOT / "benchmarks/results/overhead_cpu.json").read_text())
    times = {name: np.median(t) for name, t in record["update_seconds"].items()}
    compiling = {n: sum(t) for n, t in record["trace_and_compile_seconds"].items()}
    rows = table_rows(README, "in front of adam")
    assert set(rows) == set(times)
    for name, (update, compile_) in rows.items():
        assert update == f"{times[name] / times['adam alone']:.2f}"
        assert compile_ == f"{compiling[name] / compiling['clip_by_block_rms']:.2f}"


def test_the_demo_s_table_is_the_record():
    record = json.loads((ROOT / "docs/demo.json").read_text())
    # One learning rate.
    errors = {run["name"]: run["relative_l2"][0] for run in record["runs"]}
    page = (ROOT / "docs/loss_terms.md").read_text()
    methods = re.search(r"\| demo \| (.*) \|", page)[1].split(" | ")
    rows = table_rows(page, "demo")
    assert len(rows) * len(methods) == len(errors)
    for problem, cells in rows.items():
        expected = [np.median(errors[f"{problem}, {method}"]) for method in methods]
        assert cells == [f"{error:#.2g}" for error in expected]


def medians(runs, **wanted):
    """The median over seeds, at the better rate, of the runs of one column."""
    found = [r for r in runs if wanted.items() <= r.items()]
    errors = [[np.inf if x is None else x for x in r["errors"]] for r in found]
    return min(map(np.median, errors), default=None)


METHODS = ("balanced", "gradient norms", "ConFIG", "annealing", "MultiAdam")


def test_the_table_of_loss_terms_is_the_record():
    files = [ROOT / f"benchmarks/results/loss_terms_{d}.json" for d in ("cpu", "gpu")]
    runs = [r for file in files for r in json.loads(file.read_text())["runs"]]
    page = (ROOT / "docs/loss_terms.md").read_text().replace("**", "")
    table = page.split("| | weight 1 |")[1].split("\n\n")[0]
    parts = dict(
        zip(("muon", "adam"), re.split(r"\| (?:Muon|Adam) \|", table)[1:], strict=True)
    )
    lines = [(base, x) for base, part in parts.items() for x in part.splitlines()[1:]]
    checked = 0
    for base, line in lines:
        name, *cells = (cell.strip() for cell in line[1:-1].split("|"))
        case = re.sub(r"(\w+), (\d+) layers of (\d+)", r"\1 \2 x \3", name)
        known = {"case": case, "base": base}
        fixed = {10.0**k: medians(runs, **known, weight=10.0**k) for k in range(-2, 7)}
        best = min(fixed, key=fixed.get)
        assert cells[1].endswith(f"({best:,.0f})")
        expected = [fixed[1.0], fixed[best]]
        expected += [medians(runs, **known, method=method) for method in METHODS]
        for cell, error in zip(cells, expected, strict=True):
            if error is None:
                assert cell in ("", "not run")
            else:
                # Two digits are shown.
                assert float(cell.split()[0]) == pytest.approx(error, rel=0.05)
                checked += 1
    assert checked == 41
