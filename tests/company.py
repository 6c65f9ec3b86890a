"""Sessions in one run against each of them alone: the same bits, whoever the company, threads and instruction set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import llmc

Array = np.ndarray[Any, Any]
PLANS = ((5, 1, 3, 1), (17, 1, 1), (1, 1, 2, 1), (2, 9), (1,))  # rows of each call of a session


def in_company(
    path: Path,
    inputs: Any,
    threads: Iterable[int] = (1, 2, 3),
    variants: Iterable[str | None] = (None,),
) -> None:
    """Five sessions of a model's first function, rewound and forked on the way.

    Args:
        inputs: (session, call, rows) -> the inputs of a call.
    """
    found = []
    for variant in variants:
        for count in threads:
            with llmc.load(path, threads=count, variant=variant) as model:
                assert model.functions[next(iter(model.functions))].batches
                alone = [_alone(model, inputs, s) for s in range(len(PLANS))]
                _compare(model, inputs, alone, np.random.default_rng(count))
                found.append(alone)
    for other in found[1:]:
        _same(other, found[0])


def _alone(model: Any, inputs: Any, number: int) -> list[Mapping[str, Array]]:
    with model.session() as session:
        return [session.run(inputs(number, i, rows)) for i, rows in enumerate(PLANS[number])]


def _compare(model: Any, inputs: Any, alone: Any, rng: np.random.Generator) -> None:
    sessions, done = [model.session() for _ in PLANS], [0] * len(PLANS)
    while going := [s for s, plan in enumerate(PLANS) if done[s] < len(plan)]:
        chosen = rng.permutation(going)[: rng.integers(1, 4)]
        for s in chosen:
            if rng.random() < 0.3:
                _astray(model, sessions[s], inputs)
            if rng.random() < 0.3:
                sessions[s] = sessions[s].fork()
        calls = [(sessions[s], inputs(s, done[s], PLANS[s][done[s]])) for s in chosen]
        for s, outputs in zip(chosen, model.run_sessions(calls), strict=True):
            _same(outputs, alone[s][done[s]])
            done[s] += 1


def _astray(model: Any, session: Any, inputs: Any) -> None:
    """Go on with something else, in company, and back."""
    (length,) = session.lengths.values()
    with model.session() as other:
        model.run_sessions([(other, inputs(9, 9, 2)), (session, inputs(9, 8, 3))])
    session.rewind(length)


def _same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, Mapping):
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name].view(np.int32), array.view(np.int32), err_msg=name)
        return
    for a, b in zip(found, wanted, strict=True):
        _same(a, b)
