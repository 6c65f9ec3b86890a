"""What tests of sessions ask of calls."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from llmc import LlmcError

IDS = np.array([[1, 2, 3], [4, 5, 6]])
LONG = 20_000  # rounds of a millisecond: never waited for to the end


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def refused(message, function, *arguments, **named):
    with pytest.raises(LlmcError) as caught:
        function(*arguments, **named)
    assert message in str(caught.value), str(caught.value)


def sequence(seed, batch, calls=6):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 10, (batch, rng.integers(1, 7))) for _ in range(calls)]


def running(session, **options):
    """A thread that runs for long, and what it raises; returns when the run has begun."""
    raised = []

    def work():
        try:
            session.run({"ids": IDS, "rounds": np.array(LONG)}, **options)
        except LlmcError as error:
            if "in use" in str(error):  # the other thread looked at it just then
                work()
            else:
                raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    busy = 0  # looks in a row: asking for the outputs' shapes, before the run, keeps the session for a moment too
    while thread.is_alive() and busy < 30:
        try:
            _ = session.lengths
            busy = 0
        except LlmcError:  # it is in use
            busy += 1
        time.sleep(0.001)
    return thread, raised
