"""What each task's outputs are turned into; probabilities against a softmax written out here."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from llmc.cli.answers import Encoded, describe, show, softmax
from llmc.errors import LlmcError


@pytest.fixture
def encoded(demo_folder):
    """Texts encoded by the demo model's tokenizer."""
    tokenizer = Tokenizer.from_file(str(demo_folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")

    def encode(texts, pairs=()):
        batch = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
        return Encoded(list(texts), list(pairs), tokenizer.encode_batch(batch), {}, tokenizer)

    return encode


def model(task, labels=("negative", "positive")):
    return SimpleNamespace(task=task, labels=labels)


def test_softmax_of_large_logits():
    np.testing.assert_allclose(softmax(np.float32([1000, 1000, -1000])), [0.5, 0.5, 0], atol=1e-12)


def test_classes_are_ranked_with_probabilities(encoded):
    logits = np.float32([[0, np.log(3)], [2, -1]])
    first, second = describe(model("text-classification"), encoded(["a", "b"]), {"logits": logits})
    assert first["label"] == "positive"
    assert first["probabilities"] == pytest.approx({"positive": 0.75, "negative": 0.25})
    assert second["label"] == "negative"
    assert list(second["probabilities"]) == ["negative", "positive"]


def test_labels_without_names(encoded):
    (answer,) = describe(model("text-classification", None), encoded(["a"]), {"logits": np.float32([[0, 1]])})
    assert answer["label"] == "LABEL_1"


def test_embedding_has_its_norm(encoded):
    outputs = {"sentence_embedding": np.float32([[3, 4]]), "last_hidden_state": np.zeros((1, 3, 2))}
    (answer,) = describe(model("sentence-embedding"), encoded(["a"]), outputs)
    assert answer["norm"] == 5
    assert answer["embedding"].tolist() == [3, 4]


def test_tokens_skip_special_ones_and_padding(encoded):
    texts = encoded(["good film", "good"])
    count = len(texts.encodings[0].ids)
    logits = np.zeros((2, count, 2), np.float32)
    logits[:, :, 1] = 1
    long, short = describe(model("token-classification", ("O", "X")), texts, {"logits": logits})
    assert [(t["token"], t["label"]) for t in long["tokens"]] == [("good", "X"), ("film", "X")]
    assert [(t["start"], t["end"]) for t in short["tokens"]] == [(0, 4)]


def test_answer_is_a_span_of_the_second_text(encoded):
    texts = encoded(["who is good"], ["the film is good"])
    e = texts.encodings[0]
    start, end = np.zeros((2, 1, len(e.ids)), np.float32)
    context = [i for i, s in enumerate(e.sequence_ids) if s == 1]
    start[0, 2], start[0, context[1]] = 9, 8  # position 2 is in the question and does not count
    end[0, context[0]], end[0, context[1]] = 9, 8  # before the start: does not count
    (answer,) = describe(model("question-answering"), texts, {"start_logits": start, "end_logits": end})
    assert answer["answer"] == "film"
    assert (answer["start"], answer["end"]) == (4, 8)


def test_mask_is_filled_with_the_likeliest_pieces(encoded):
    texts = encoded(["a [MASK] film"])
    logits = np.zeros((1, len(texts.encodings[0].ids), texts.tokenizer.get_vocab_size()), np.float32)
    logits[0, 2, texts.tokenizer.token_to_id("good")] = 20
    (answer,) = describe(model("fill-mask"), texts, {"logits": logits})
    assert answer["masks"][0][0]["token"] == "good"
    assert len(answer["masks"][0]) == 5


def test_a_text_without_mask_is_refused(encoded):
    with pytest.raises(LlmcError, match="no mask to fill"):
        describe(model("fill-mask"), encoded(["a film"]), {"logits": np.zeros((1, 4, 9))})


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_answers_print_one_block_a_text(encoded, capsys, task):
    outputs = {"logits": np.float32([[0, 1], [1, 0]])}
    answers = describe(model(task), encoded(["one", "two"]), outputs)
    show(answers)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["one", "two"]
    json.dumps(answers, default=lambda a: a.tolist())
