"""Beam search on the artifact `words`, beside transformers' own on a model that gives the same logits."""

from __future__ import annotations

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
PROMPTS = ([5, 6, 7, 8], [3], [9, 1, 9, 2, 9])


@pytest.fixture(scope="module")
def twin(model):
    """A model of transformers whose logits are the artifact's: every call is a whole pass."""

    class Twin(transformers.LlamaForCausalLM):
        def forward(self, input_ids, **_):
            rows = []
            for ids in input_ids.tolist():
                with model.session() as session:
                    for begin in range(0, len(ids), 8):
                        part = np.array([ids[begin : begin + 8]])
                        keep = np.arange(part.shape[1])
                        logits = session.run({"input_ids": part, "logits_to_keep": keep})["logits"]
                rows.append(torch.from_numpy(logits[0, -1:]))
            return transformers.modeling_outputs.CausalLMOutputWithPast(logits=torch.stack(rows))

    config = transformers.LlamaConfig(
        vocab_size=41, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return Twin(config).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2, "num_return_sequences": 2},
        {"num_beams": 5, "num_return_sequences": 5, "length_penalty": 0.0},
        {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0},
        {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": -1.0},
        {"num_beams": 3, "repetition_penalty": 1.4, "min_new_tokens": 6},
        {"num_beams": 4, "suppress_tokens": [3, 4, 5], "num_return_sequences": 2},
        {"num_beams": 4, "suppress_tokens": [3, 4, 5], "repetition_penalty": 1.4, "renormalize_logits": True},
        {"num_beams": 1},
    ],
    ids=str,
)
def test_the_texts_are_those_of_transformers(model, twin, options):
    options = {"num_beams": 4, **options}
    for prompt in PROMPTS:
        found = model.search(prompt, max_new_tokens=9, **options)
        expected = twin.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=9,
            eos_token_id=0,
            pad_token_id=40,
            do_sample=False,
            use_cache=False,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
        texts = [list(row[len(prompt) :]) for row in expected.sequences.tolist()]
        assert [made.ids for made in found] == [t[: t.index(0) + 1] if 0 in t else t for t in texts]
        if options["num_beams"] > 1:
            scores = expected.sequences_scores.tolist()
            np.testing.assert_allclose([made.score for made in found], scores, rtol=1e-4)


def test_a_text_is_what_its_tokens_are(model):
    best, second = model.search("abc", num_return_sequences=2, max_new_tokens=6)
    assert best.score > second.score
    assert best.usage.new_tokens == len(best.ids)
    assert best.finish == ("stop" if best.ids[-1] == 0 else "length")
    assert best.prompt == (3, 4, 5)


def test_recurrent_states_are_forked_too(folded):
    with load(folded, threads=1) as model:
        found = model.search(
            [5, 6, 7], num_beams=3, num_return_sequences=3, max_new_tokens=5, eos_token_id=[]
        )
        for made in found:
            total, ids = 0.0, [5, 6, 7]
            for token in made.ids:
                with model.session() as session:
                    given = {"input_ids": np.array([ids]), "logits_to_keep": np.array([len(ids) - 1])}
                    logits = session.run(given)["logits"][0, 0].astype(np.float64)
                total += logits[token] - np.log(np.exp(logits).sum())
                ids.append(token)
            assert made.score == pytest.approx(total / 5, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 0}, "num_beams is 0, must be within 1..64"),
        ({"num_return_sequences": 5}, "num_return_sequences is 5, must be within 1..4"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon', must be True, False or \"never\""),
        ({"renormalize_logits": 1}, "renormalize_logits is 1, must be True or False"),
        ({"length_penalty": "x"}, "length_penalty is 'x', must be within -40..40"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"length_penalty": 1e300}, "length_penalty is 1e+300"),
        ({"suppress_tokens": [41]}, "suppress_tokens: 41 is no token"),
        ({"suppress_tokens": list(range(41))}, "no token is left to choose from"),
        ({"do_sample": True}, "do_sample cannot go with beams"),
        ({"stop": "a"}, "stop_strings cannot go with beams"),
        ({"num_beems": 3}, "the model has no option 'num_beems'"),
    ],
)
def test_mistakes(model, options, told):
    with pytest.raises(LlmcError) as caught:
        model.search([5], **options)
    assert told in str(caught.value)


def test_one_text_is_not_taken_for_several(model):
    """The others were left out in silence."""
    one = model.generate([5], num_beams=2, num_return_sequences=1, max_new_tokens=3)
    assert one.ids == model.search([5], num_beams=2, max_new_tokens=3)[0].ids
    for prompt in ([5], [[5], [6]]):
        with pytest.raises(LlmcError, match="generate gives the best text alone"):
            model.generate(prompt, num_beams=2, num_return_sequences=2)


def test_prompts_that_cannot_be(model):
    with pytest.raises(LlmcError, match="the prompt has 64 tokens, the model takes at most 64"):
        model.search([5] * 64)
    with pytest.raises(LlmcError, match="token 0 of the prompt is 41"):
        model.search([41])
