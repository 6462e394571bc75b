"""benchmarks/train_floor.py: which products a step has, forward and backward."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from train_floor import products_alone  # noqa: E402


def test_products_of_a_step_are_counted_and_run_alone():
    """Two linear maps, the first of a constant: 2 products forward, 3 backward; an attention has one each way."""
    torch.manual_seed(0)
    one, two = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    x, ran = torch.randn(2, 5, 8), []

    def step() -> None:
        hidden = two(one(x).relu())[:, None]
        functional.scaled_dot_product_attention(hidden, hidden, hidden).sum().backward()
        ran.append(True)

    run, count = products_alone(step)
    assert count == 2 + 3 + 2
    before = [p.grad.clone() for p in (*one.parameters(), *two.parameters())]
    run()
    assert len(ran) == 1  # the step itself is not run again, and nothing of it has changed
    assert all(torch.equal(p.grad, g) for p, g in zip((*one.parameters(), *two.parameters()), before, strict=True))
