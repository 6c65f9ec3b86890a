"""Choosing tokens: the same distributions as transformers' own logits processors, and draws that never change."""

from __future__ import annotations

from ctypes import POINTER, byref, c_double, c_float, c_int64, c_uint32
from dataclasses import replace

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime import load, native
from llmc.runtime.generation_options import GenerationOptions, options_of

torch = pytest.importorskip("torch")
theirs = pytest.importorskip("transformers.generation.logits_process")
SIZE = 300
PROMPT, MADE = [3, 5, 5, 8], [9, 3, 11, 9]


@pytest.fixture(scope="module")
def library(words):
    with load(words, threads=1) as model:
        yield model._open_handle().library, replace(model.manifest.generation, vocabulary=SIZE)


def bits(tokens, size):
    """The mask of llmc.h."""
    mask = (c_uint32 * -(-size // 32))()
    for token in tokens:
        mask[token // 32] |= 1 << token % 32
    return mask


def choose(library, logits, ids=(), n_prompt=0, allowed=None, **options):
    """Probabilities of all tokens, and the one that is drawn."""
    lib, entry = library
    logits = np.ascontiguousarray(logits, np.float32)
    found = options_of(entry, options) if "seed" not in options else GenerationOptions(**options)
    asked = found.to_c(entry, list(ids)[:n_prompt]).choice
    asked.top_k = found.top_k or 0
    if allowed is not None:
        asked.allowed = bits(allowed, len(logits))
    ids = np.array(ids, np.int64)
    token, probabilities, error = c_int64(), np.empty(len(logits)), native.Error()
    status = lib.choose(
        byref(asked),
        logits.ctypes.data_as(POINTER(c_float)),
        len(logits),
        ids.ctypes.data_as(POINTER(c_int64)),
        len(ids),
        n_prompt,
        byref(token),
        probabilities.ctypes.data_as(POINTER(c_double)),
        byref(error),
    )
    lib.check(status, error, "here")
    return probabilities, token.value


def expected(logits, ids, *processors):
    scores = torch.from_numpy(np.asarray(logits, np.float32))[None]
    for processor in processors:
        scores = processor(torch.tensor([ids], dtype=torch.int64), scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


def random_logits(seed, ties=False):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(SIZE) * rng.choice([0.5, 2, 8])).astype(np.float32)
    return np.round(logits) if ties else logits


WARPERS = {
    "temperature": (theirs.TemperatureLogitsWarper, [0.3, 0.7, 1.9]),
    "top_k": (theirs.TopKLogitsWarper, [1, 7, 50, 299, 300, 1000]),
    "top_p": (theirs.TopPLogitsWarper, [0.0, 0.1, 0.5, 0.9, 0.999]),
    "min_p": (theirs.MinPLogitsWarper, [0.01, 0.1, 0.5, 1.0]),
    "typical_p": (theirs.TypicalLogitsWarper, [0.05, 0.2, 0.7, 0.95]),
}


@pytest.mark.parametrize("name", WARPERS)
def test_each_filter_is_transformers(library, name):
    make, values = WARPERS[name]
    for value in values:
        for seed in range(20):
            logits = random_logits(seed)
            found, _ = choose(library, logits, do_sample=True, **{name: value})
            np.testing.assert_allclose(found, expected(logits, [0], make(value)), atol=1e-6)


def test_filters_with_equal_logits_keep_what_transformers_keeps(library):
    """Of equal tokens at the edge top-p may keep others: their number and sum are the same."""
    for seed in range(20):
        logits = random_logits(seed, ties=True)
        found, _ = choose(library, logits, do_sample=True, top_k=7)
        np.testing.assert_allclose(found, expected(logits, [0], theirs.TopKLogitsWarper(7)), atol=1e-6)
        found, _ = choose(library, logits, do_sample=True, typical_p=0.5)
        np.testing.assert_allclose(found, expected(logits, [0], theirs.TypicalLogitsWarper(0.5)), atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_all_together_come_in_transformers_order(library, seed):
    logits, ids = random_logits(seed), PROMPT + MADE
    eos = torch.tensor([7, 200])
    found, _ = choose(
        library,
        logits,
        ids,
        len(PROMPT),
        do_sample=True,
        logit_bias={9: 2.5, 20: -1.0},
        repetition_penalty=1.3,
        min_new_tokens=5,
        eos_token_id=[7, 200],
        temperature=0.8,
        top_k=60,
        top_p=0.95,
        min_p=0.02,
        typical_p=0.9,
    )
    wanted = expected(
        logits,
        ids,
        theirs.SequenceBiasLogitsProcessor({(9,): 2.5, (20,): -1.0}),
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, eos),
        theirs.TemperatureLogitsWarper(0.8),
        theirs.TopKLogitsWarper(60),
        theirs.TopPLogitsWarper(0.95),
        theirs.MinPLogitsWarper(0.02),
        theirs.TypicalLogitsWarper(0.9),
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_repetition_and_suppressed_tokens(library, seed):
    logits, ids = random_logits(seed), PROMPT + MADE
    processors = [theirs.RepetitionPenaltyLogitsProcessor(0.7), theirs.SuppressTokensLogitsProcessor([3, 4])]
    options = {"repetition_penalty": 0.7, "suppress_tokens": [3, 4]}
    found, _ = choose(library, logits, ids, len(PROMPT), do_sample=True, **options)
    np.testing.assert_allclose(found, expected(logits, ids, *processors), atol=1e-6)
    _, token = choose(library, logits, ids, len(PROMPT), **options)
    assert token == expected(logits, ids, *processors).argmax()  # without a draw too


def test_presence_and_frequency_count_new_tokens_alone(library):
    logits = random_logits(1)
    options = {"presence_penalty": 0.5, "frequency_penalty": 0.25}
    found, _ = choose(library, logits, PROMPT + MADE, len(PROMPT), do_sample=True, **options)
    less = np.zeros(SIZE, np.float32)
    less[[3, 11]], less[9] = 0.75, 1.0
    np.testing.assert_allclose(found, expected(logits - less, [0]), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_of_tokens_that_are_allowed_each_is_as_likely_as_among_them(library, seed):
    """The plain distribution, masked and renormalised; filters count among the allowed."""
    logits, allowed = random_logits(seed), np.flatnonzero(np.random.default_rng(seed).random(SIZE) < 0.3)
    mask = np.full(SIZE, -np.inf, np.float32)
    mask[allowed] = 0
    plain, _ = choose(library, logits, do_sample=True, temperature=0.7)
    found, token = choose(library, logits, allowed=allowed, do_sample=True, temperature=0.7, seed=seed)
    np.testing.assert_allclose(found[allowed], plain[allowed] / plain[allowed].sum(), atol=1e-12)
    assert token in allowed
    assert not np.delete(found, allowed).any()
    found, _ = choose(library, logits, allowed=allowed, do_sample=True, top_k=9, top_p=0.9)
    wanted = expected(logits + mask, [0], theirs.TopKLogitsWarper(9), theirs.TopPLogitsWarper(0.9))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    options = {"repetition_penalty": 1.7}
    _, token = choose(library, logits, PROMPT + MADE, len(PROMPT), allowed=allowed, **options)
    scores = expected(logits, PROMPT + MADE, theirs.RepetitionPenaltyLogitsProcessor(1.7))
    assert token == np.where(mask == 0, scores, -1).argmax()


def test_tokens_that_end_a_text_come_early_where_nothing_else_is_allowed(library):
    logits, options = np.zeros(SIZE, np.float32), {"min_new_tokens": 5, "eos_token_id": [7, 200]}
    assert choose(library, logits, allowed=[7, 9], **options)[1] == 9
    assert choose(library, logits, allowed=[200], **options)[1] == 200
    with pytest.raises(LlmcError, match="no token is left to choose from"):
        choose(library, logits, allowed=[], **options)


def test_exponentials_are_exact_enough(library):
    """Against NumPy's in float64, over all that a probability can be."""
    logits = np.concatenate([np.linspace(-650, 0, SIZE), -np.logspace(-9, 0, SIZE)]).astype(np.float32)
    found, _ = choose(library, logits, do_sample=True)
    exact = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(found, exact / exact.sum(), rtol=1e-14)


def test_random_numbers_are_philox(library):
    """Of 65536 equal tokens the one whose number is the first 16 bits: Random123's own example for seed 0."""
    flat = np.zeros(1 << 16, np.float32)
    assert choose(library, flat, do_sample=True, seed=0)[1] == 0xE169
    made = [choose(library, flat, [0] * n, 0, do_sample=True, seed=2**64 - 1)[1] for n in range(4)]
    assert len(set(made)) == 4


def test_draws_follow_the_probabilities(library):
    """4000 draws of 5 tokens: chi-square with 4 degrees of freedom, far below what one in a million exceeds."""
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    counts = np.bincount(
        [choose(library, logits, do_sample=True, seed=s)[1] for s in range(4000)], minlength=5
    )
    wanted = 4000 * np.exp(logits)
    assert ((counts - wanted) ** 2 / wanted).sum() < 33


def test_the_likeliest_of_equal_ones_is_the_first(library):
    logits = np.zeros(SIZE, np.float32)
    logits[[7, 9]] = 1
    assert choose(library, logits)[1] == 7


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("draw", [False, True])
def test_logits_that_are_no_numbers_are_told(library, value, draw):
    logits = np.zeros(SIZE, np.float32)
    logits[5] = value
    with pytest.raises(LlmcError, match="the model gave logits that are no numbers"):
        choose(library, logits, do_sample=draw)


def test_a_token_may_be_impossible(library):
    logits = np.full(SIZE, -np.inf, np.float32)
    logits[5] = -3
    assert choose(library, logits, do_sample=True, top_p=0.5, typical_p=0.5, min_p=0.5)[1] == 5
    with pytest.raises(LlmcError, match="no token is left to choose from"):
        choose(library, logits, logit_bias={5: -np.inf})


def test_ids_are_checked(library):
    with pytest.raises(LlmcError, match=r"ids\[1\] is 300, must be within 0\.\.299"):
        choose(library, random_logits(0), [0, 300])
    with pytest.raises(LlmcError, match="of 1 ids 2 cannot be the prompt"):
        choose(library, random_logits(0), [0], 2)
