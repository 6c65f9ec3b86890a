"""The interleaved timer and the bootstrap interval of a ratio."""

import time

import numpy as np

from llmc.demo.race import race, ratio


def test_race_takes_turns_and_rotates():
    order = []
    times = race({name: (lambda name=name: order.append(name)) for name in "abc"}, seconds=0)
    assert {name: len(t) for name, t in times.items()} == {"a": 15, "b": 15, "c": 15}
    assert order[9:18] == list("abcbcacab")


def test_race_measures_what_a_call_takes():
    times = race({"slow": lambda: time.sleep(0.004), "fast": lambda: None}, seconds=0)
    value, low, high = ratio(times["slow"], times["fast"])
    assert np.median(times["slow"]) >= 0.004
    assert 1 < low <= value <= high


def test_ratio_of_paired_rounds_cancels_what_both_suffer():
    rng = np.random.default_rng(1)
    machine = rng.uniform(1, 10, 400)  # the same slowness in both of a round
    value, low, high = ratio(2 * machine, machine)
    assert abs(value - 2) < 1e-12
    assert high - low < 1e-12


def test_interval_holds_the_truth_most_of_the_time():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(100):
        a, b = rng.lognormal(0, 0.2, (2, 60)) * np.array([[1.5], [1.0]])
        _, low, high = ratio(a, b, resamples=300)
        hits += low <= 1.5 <= high
    assert hits >= 85
