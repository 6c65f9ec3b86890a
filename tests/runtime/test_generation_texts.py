"""Texts, their pieces, stop strings and chats on the artifact `words`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from generating import refused

from llmc import LlmcError
from llmc.runtime import load
from llmc.runtime.manifest import seal


def test_text_and_tokens_are_the_same(model):
    found = model.generate("abc de")
    assert found.prompt == (3, 4, 5, 29, 6, 7)
    assert found.ids == model.generate([3, 4, 5, 29, 6, 7]).ids
    assert str(found) == found.text


def test_pieces_of_a_stream_are_the_text(model):
    """Tokens are bytes here, so characters of several come and break."""
    broken = 0
    for seed in range(30):
        options = {"do_sample": True, "seed": seed, "temperature": 3.0, "top_k": 0, "max_new_tokens": 40}
        stream = model.stream("ab", **options)
        pieces = list(stream)
        whole = model.generate("ab", **options)
        assert "".join(pieces) == stream.result.text == whole.text
        assert all(pieces)
        broken += "\ufffd" in whole.text
        visible = [t for t in whole.ids if t]
        assert whole.text == model_text(model, visible)
    assert broken


def model_text(model, ids):
    from llmc.runtime.prompts import encoder_of

    return encoder_of(model).text_of(ids)


def test_stop_strings_end_a_text_and_are_not_shown(model):
    whole = model.generate("ab", max_new_tokens=30, eos_token_id=[]).text
    for begin, length in ((2, 1), (3, 2), (5, 3)):
        stop = whole[begin : begin + length]
        stream = model.stream("ab", max_new_tokens=30, eos_token_id=[], stop=["never comes", stop])
        shown = "".join(stream)
        assert shown == whole[: whole.index(stop)] == stream.result.text
        assert stream.result.finish == "stop"
        assert stream.result.usage.new_tokens < 30
    kept = model.generate("ab", max_new_tokens=30, eos_token_id=[], stop=whole[-1] + "nope")
    assert (kept.text, kept.finish) == (
        whole,
        "length",
    )  # what might have been its beginning is given out at the end


def test_a_stop_string_that_is_a_special_token(model):
    """As in transformers, though no text shows it."""
    asked = {"max_new_tokens": 5, "eos_token_id": [], "forced_eos_token_id": SPECIAL}
    for made in (
        model.generate("ab", stop="<u>", **asked),
        model.generate(["ab"], each=[{"stop": ["x", "<u>"]}], **asked)[0],
    ):
        assert (made.ids[-1], made.finish, made.tokens[-1].stops) == (SPECIAL, "stop", True)
    assert model.generate("ab", **asked).finish == "length"


SPECIAL = 1  # <u>


def test_a_stream_that_is_left_gives_its_session_back(model):
    for _ in range(3):
        stream = model.stream("abc", eos_token_id=[])
        next(stream)
        stream.close()
        assert list(stream) == []
    assert len(model._idle) == 1
    both = [model.stream("abc"), model.stream("abd")]  # the second has a session of its own
    assert [s.all().text for s in both] == [model.generate(p).text for p in ("abc", "abd")]
    assert len(model._idle) == 1


# --- chats


def test_chat_is_the_template_and_goes_on(model):
    first = model.chat("ab")
    assert first.prompt == (1, 3, 4, 0, 2)
    messages = [{"role": "user", "content": "ab"}, first.message, {"role": "user", "content": "c"}]
    second = model.chat(messages, stream=True)
    text = "".join(second)
    assert text == model.chat(messages).text
    assert second.result.usage.cached_tokens > 4


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat template fails: roles must alternate"),
        ("{{ messages[7].content }}", "the chat template fails: "),
        ("{{ 1 // 0 }}", "the chat template fails: ZeroDivisionError"),
        ("{% for %}", "the chat template fails: "),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails: "),
        ("{{ namespace(__call__=1) }}", "a namespace takes no __call__"),
        ("{% set ns = namespace() %}{% set ns._a = 1 %}", "a namespace takes no _a"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
        ("{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "does not end"),
        ("{{ 'x' * 10 ** 10 }}", "the chat template fails: * with 1e+10 is too much"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template fails: RecursionError"),
    ],
)
def test_a_template_that_fails_is_a_sentence(words, tmp_path, template, told):
    copied = Path(shutil.copytree(words, tmp_path / "changed.llmc"))
    (copied / "chat_template.jinja").write_text(template)
    fields = json.loads((copied / "manifest.json").read_text())
    del fields["files"]["chat_template.jinja"]
    fields["files"]["chat_template.jinja"] = entry_of(copied / "chat_template.jinja")
    (copied / "manifest.json").write_text(json.dumps(seal(fields)))
    with load(copied, threads=1) as model:
        refused(told, model.chat, "ab")
        assert model.generate("ab").ids


def entry_of(path):
    import hashlib

    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_templates_are_rendered_as_transformers_does():
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    from llmc.runtime import chat

    messages = [
        {"role": "system", "content": "a <b>"},
        {"role": "user", "content": [{"type": "text", "text": "é"}]},
        {"role": "assistant", "content": "c"},
    ]
    for template in (
        "{% for m in messages %}\n  {% if loop.first %}{{ bos_token }}{% endif %}\n{{ m['role'] }}\n{% endfor %}",
        "{{ messages | tojson(indent=2) }}{{ tools is none }}{{ add_generation_prompt }}{{ extra }}",
        "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% if loop.index > 1 %}{% break %}"
        "{% endif %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% set ns = namespace(self=1, b=[]) %}{% set ns.b = ns.b + [ns.self] %}{{ ns.b }}",
        "{{ dict(a=1) }}{{ dict.fromkeys('ab') }}",
        "{{ strftime_now('%Y') }}",
    ):
        variables = {"bos_token": "<s>", "extra": 3}
        expected, _ = theirs.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **variables
        )
        given = {
            "tools": None,
            "documents": None,
            **variables,
            "messages": messages,
            "add_generation_prompt": True,
        }
        assert chat._rendered(template, given, "x") == expected[0]


@pytest.mark.parametrize("messages", [[], [3], [{"content": "x"}], 3, [{"role": "user", "content": {1, 2}}]])
def test_messages_that_are_none(model, messages):
    with pytest.raises(LlmcError, match=r"not a conversation|is none|JSON cannot"):
        model.chat(messages)


def test_what_was_thought_has_each_name():
    from llmc.runtime import chat

    (message,) = chat._messages([{"role": "assistant", "content": "a", "reasoning": "b"}])
    assert (message["thinking"], message["reasoning_content"], message["reasoning"]) == ("b", "b", "b")


@pytest.mark.parametrize("variables", ["x", {5: 1}, {"messages": []}])
def test_variables_that_are_none(model, variables):
    with pytest.raises(LlmcError, match=r"template's variable"):
        model.chat("the fish", template=variables)
    assert model.chat("the fish", template={"model": 1, "generate": 2}, max_new_tokens=1).ids
