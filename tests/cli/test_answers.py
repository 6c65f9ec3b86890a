"""What each task's outputs are turned into; probabilities against a softmax written out here."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from llmc.cli.answers import Encoded, describe, show, softmax
from llmc.cli.media_answers import _classes as classes_of
from llmc.cli.output import print_table, printable
from llmc.compiler.frontends.tasks import scores_of
from llmc.dataset import label_index
from llmc.errors import LlmcError
from llmc.evaluate import _want_classes


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


LOGITS = np.float32([[1.0565, -0.2492, -0.9643]])


def scored(scores, logits, labels, encoded):
    made = SimpleNamespace(task="text-classification", labels=labels, scores=scores)
    return describe(made, encoded(["a"]), {"logits": logits})[0]


def test_labels_that_hold_together(encoded):
    """transformers' pipeline takes the sigmoid of each."""
    answer = scored("sigmoid", LOGITS, ("a", "b", "c"), encoded)
    assert answer["probabilities"] == pytest.approx({"a": 0.742, "b": 0.438, "c": 0.276}, abs=5e-4)


def test_classes_of_one_name_stay_apart(encoded):
    """ImageNet has two cranes: the likeliest is not hidden behind the other."""
    logits = np.float32([np.log([1, 3, 6])])
    answer = scored("softmax", logits, ("crane", "cat", "crane"), encoded)
    assert answer["label"] == "crane"
    assert answer["probabilities"] == pytest.approx({"crane (2)": 0.6, "cat": 0.3, "crane (0)": 0.1})
    made = SimpleNamespace(task="image-classification", labels=("crane", "cat", "crane"), scores="softmax")
    image = classes_of(made, {"logits": logits}, 0, None, None)
    assert image["probabilities"] == pytest.approx(answer["probabilities"])


def test_a_label_of_data_is_the_class_that_is_written_so():
    assert [label_index("line 1", word, ("us", "US", "it"), 3) for word in ("us", "US", "IT", "2")] == [
        0,
        1,
        2,
        2,
    ]
    for word, labels in (("crane", ("crane", "cat", "crane")), ("Us", ("us", "US", "it"))):
        with pytest.raises(LlmcError, match="names several classes"):
            label_index("line 1", word, labels, 3)


def test_one_label(encoded):
    answer = scored("sigmoid", np.float32([[-0.2465]]), ("good",), encoded)
    assert answer["probabilities"] == pytest.approx({"good": 0.4387}, abs=5e-5)


def test_a_regression_gives_numbers(encoded, capsys):
    answer = scored("none", np.float32([[3.25, -1]]), ("stars", "price"), encoded)
    assert answer == {"text": "a", "values": {"stars": 3.25, "price": -1.0}}
    show([answer])
    assert capsys.readouterr().out == "a\n  stars 3.25  price -1\n"


@pytest.mark.parametrize(
    ("config", "count", "scores"),
    [
        ({}, 2, "softmax"),
        ({}, 1, "sigmoid"),
        ({"problem_type": "single_label_classification"}, 3, "softmax"),
        ({"problem_type": "multi_label_classification"}, 3, "sigmoid"),
        ({"problem_type": "regression"}, 1, "none"),
        ({"problem_type": "regression"}, 2, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 1, "none"),
    ],
)
def test_what_the_config_makes_of_logits(config, count, scores):
    assert scores_of(config, "text-classification", count, "config.json") == scores
    assert scores_of(config, "token-classification", count, "config.json") is None


def test_a_problem_that_is_none():
    with pytest.raises(LlmcError, match="no problem_type 'multi_label'"):
        scores_of({"problem_type": "multi_label"}, "text-classification", 2, "config.json")
    with pytest.raises(LlmcError, match="no problem_type"):
        scores_of({"problem_type": ["regression"]}, "text-classification", 2, "config.json")


@pytest.mark.parametrize("scores", ["sigmoid", "none"])
def test_eval_has_no_accuracy_for_these(scores):
    made = SimpleNamespace(task="text-classification", scores=scores)
    with pytest.raises(LlmcError, match="eval knows no measure"):
        _want_classes(made, "m.llmc")


HOSTILE = "\x1b[2J\x07red\u202egnp\x9b"


def test_labels_do_not_reach_the_terminal_raw(encoded, capsys):
    made = model("text-classification", (HOSTILE, "b"))
    show(describe(made, encoded([HOSTILE + "\n"]), {"logits": np.float32([[1, 0]])}))
    print_table(HOSTILE, ["", ""], [("labels", HOSTILE)])
    out = capsys.readouterr().out
    assert out.count(r"\x1b[2J\x07red\u202egnp\x9b") == 4
    assert not set(out) & set(HOSTILE[:1] + "\x07\u202e\x9b")
    assert printable("\udc80\n") == r"\udc80\n"
    assert printable("naïve 日本 👩‍💻") == "naïve 日本 👩‍💻"


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


def test_neither_the_question_nor_padding_takes_a_share(encoded):
    """Beside a longer text a row is padded: its answer's probability stays."""
    texts = encoded(
        ["who is good", "who"], ["the film is good", "the film is good and the film is bad and good"]
    )
    count = len(texts.encodings[0].ids)
    logits = np.full((2, count), 3.0, np.float32)  # padding and question as likely as anything
    context = [i for i, s in enumerate(texts.encodings[0].sequence_ids) if s == 1]
    logits[0, context[1]] = 8
    outputs = {"start_logits": logits, "end_logits": logits}
    answer, _ = describe(model("question-answering"), texts, outputs)
    places = [0, *context]  # the first token stands for no answer
    chances = np.exp(logits[0, places] - 8.0)
    assert answer["answer"] == "film"
    assert answer["probability"] == pytest.approx((1 / chances.sum()) ** 2, rel=1e-6)


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
