"""Generating from a source on the artifact of tests/translators.py: as transformers does it, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from generating import changed, refused

from llmc import LlmcError
from llmc.runtime import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SOURCES = ([32, 5, 6, 7, 8, 0], [9], list(range(4, 31)))
TEXT = "the old bird sees a fish"


@pytest.fixture(scope="module")
def translator(shared, tmp_path_factory):
    import translators

    return shared("translator.llmc", translators.artifact(tmp_path_factory.mktemp("translator")))


@pytest.fixture(scope="module")
def model(translator):
    with load(translator, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def twin(model):
    """An encoder-decoder of transformers whose logits are the artifact's: every call is a whole pass."""
    outputs = transformers.modeling_outputs

    class Source(torch.nn.Module):
        def forward(self, input_ids, **_):
            return outputs.BaseModelOutput(last_hidden_state=input_ids[..., None].float())

    class Twin(transformers.BartForConditionalGeneration):
        def get_encoder(self, *_, **__):
            return Source()

        def forward(self, encoder_outputs, decoder_input_ids, **_):
            rows = []
            sources = encoder_outputs.last_hidden_state[..., 0].long().numpy()
            for source, ids in zip(sources, decoder_input_ids.numpy(), strict=True):
                with model.session() as session:
                    session.run({"input_ids": source[None]})
                    given = {"input_ids": ids[None], "logits_to_keep": [len(ids) - 1]}
                    rows.append(torch.from_numpy(session.call("step", **given)["logits"][0]))
            return outputs.Seq2SeqLMOutput(logits=torch.stack(rows))

    sizes = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = transformers.BartConfig(
        vocab_size=34, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes, forced_eos_token_id=None
    )
    return Twin(config).eval()


def theirs(twin, source, options):
    usual = {"max_new_tokens": 12, "no_repeat_ngram_size": 3, "do_sample": False, "use_cache": False}
    tokens = {"decoder_start_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 1}
    return twin.generate(torch.tensor([source]), **tokens, **{**usual, **options})[:, 1:].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[9], [19, 20], [0]]},
        {"forced_bos_token_id": 7, "forced_eos_token_id": 0, "begin_suppress_tokens": [9, 12]},
        {"forced_bos_token_id": 7, "forced_eos_token_id": [9, 3], "max_new_tokens": 1},
        {"forced_bos_token_id": 7, "forced_eos_token_id": 9, "max_new_tokens": 1, "num_beams": 2},
        {"num_beams": 3},
        {"num_beams": 4, "forced_bos_token_id": 7, "forced_eos_token_id": 0, "length_penalty": 2.0},
        {"num_beams": 2, "encoder_no_repeat_ngram_size": 1, "min_new_tokens": 4, "early_stopping": True},
    ],
    ids=str,
)
def test_the_texts_are_those_of_transformers(model, twin, options):
    for source in SOURCES:
        (wanted,) = theirs(twin, source, options)
        found = model.generate(source, **options)
        assert found.ids == wanted[: len(found.ids)]
        assert not any(wanted[len(found.ids) :])  # padding
        assert found.prompt == tuple(source)


def test_a_text_is_a_source(model):
    by_tokens = model.generate([32, *(model_words().index(w) for w in TEXT.split()), 0])
    made = model.generate(TEXT)
    assert made.ids == by_tokens.ids
    assert made.usage.prompt_tokens == 8
    assert "".join(model.stream(TEXT)) == made.text
    drawn = [model.generate(TEXT, do_sample=True, seed=3).ids for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_several_sources_at_once(model):
    """Each text is the one that its source gives alone; with beams too."""
    assert model.functions["step"].single == ""
    sources = [TEXT, "two fish", "a", "the river gives a red stone and a bird", "green"]
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "seed": 5}):
        found = model.generate(sources, max_batch=3, **options)
        assert [made.ids for made in found] == [model.generate(one, **options).ids for one in sources]
    german = model.generate(sources[:2], each=[{}, {"tgt_lang": "de"}])
    assert [made.ids[0] for made in german] == [model.generate(TEXT).ids[0], 33]
    refused("prompt 1: the source is empty", model.generate, [TEXT, ""])


def model_words():
    import translators

    return list(translators.WORDS)


def test_the_makers_say_how_many_beams(model, translator, tmp_path):
    """As transformers' `generate`; what is drawn or streamed has none."""
    asked = {"num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 9}
    with load(changed(translator, tmp_path, defaults=asked)) as other:
        best = model.search(TEXT, no_repeat_ngram_size=0, **asked)[0]
        assert (other.generate(TEXT).ids, other.generate(TEXT).score) == (best.ids, best.score)
        assert other.search(TEXT)[0].score == best.score
        assert other.generate(TEXT, num_beams=1).score is None
        assert other.generate(TEXT, do_sample=True).score is None
        with other.session() as session:
            assert other.generate(TEXT, session=session).score is None


def test_languages(model):
    ids = model.generate(TEXT).ids
    german = model.generate(TEXT, tgt_lang="de_DE")
    assert german.ids[0] == 33
    assert german.ids == model.generate(TEXT, forced_bos_token_id=33).ids
    assert model.generate(TEXT, tgt_lang="de").ids == german.ids
    assert model.generate(TEXT, src_lang="fr").ids == ids
    assert model.generate(TEXT, src_lang="de").prompt[0] == 33
    refused("the model has no language 'dutch'", model.generate, TEXT, tgt_lang="dutch")
    refused(
        "src_lang cannot be set: the source's tokens name no language", model.generate, [5], src_lang="de"
    )


def test_a_session_keeps_its_source(model, tmp_path):
    """Through rewind, fork, save and load."""

    def next_row(session, token):
        return session.call("step", input_ids=[[token]], logits_to_keep=[0])["logits"][0, 0]

    with model.session() as session, model.session() as loaded:
        session.run({"input_ids": [SOURCES[2]]})
        first = next_row(session, 1)
        second = next_row(session, 5)
        session.save(tmp_path / "kept")
        loaded.load(tmp_path / "kept")
        session.rewind(1)
        with session.fork() as other:
            for held in (session, other):
                np.testing.assert_array_equal(next_row(held, 5), second)
        session.rewind(0)
        np.testing.assert_array_equal(next_row(session, 1), first)
        loaded.rewind(0)
        np.testing.assert_array_equal(next_row(loaded, 1), first)


def test_sources_that_cannot_be(model):
    for empty in ("", " \n", []):
        refused("the source is empty", model.generate, empty)
    refused("the source has 31 tokens, the model takes at most 30", model.generate, [5] * 31)
    refused("token 1 of the source is 34, must be within 0..33", model.generate, [5, 34])
    refused("not a text or a list of tokens", model.generate, 3)
    refused("cannot go with a session", model.generate, TEXT, session=model.session(), num_beams=2)
    refused("num_beams is 0, must be within 1..64", model.generate, TEXT, num_beams=0)
    refused("bad_words_ids is [[]]", model.generate, TEXT, bad_words_ids=[[]])
    refused("bad_words_ids: 34 is no token", model.generate, TEXT, bad_words_ids=[[5, 34]])
    refused("forced_bos_token_id: 34 is no token", model.generate, TEXT, forced_bos_token_id=34)
    assert model.generate(TEXT).ids  # and it goes on


def test_a_step_before_its_source(model):
    with model.session() as session, pytest.raises(LlmcError) as caught:
        session.call("step", input_ids=[[1]], logits_to_keep=[0])
    assert "function step reads state cross.0.keys, which function encode sets" in str(caught.value)


def test_the_speed_of_sources_and_tokens(model):
    found = model.benchmark_generation(prompt_tokens=(4,), new_tokens=(3,), depths=(0, 5), repetitions=1)
    assert [speed.test for speed in found.speeds] == ["pp4", "pp4 @ d5", "tg3", "tg3 @ d5"]
    assert all(speed.tokens_per_second > 0 for speed in found.speeds)
    refused(
        "a source of 31 tokens is more than the model takes", model.benchmark_generation, prompt_tokens=(31,)
    )
