"""A hand-made encoder-decoder of 34 words, beside the decoder of writers.py: cross keys and values, and `step`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import stateful_graphs as layers
import tokenizers
from writers import WORDS as SAID

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import generation_config, graph_text
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import input_, make, state_

WORDS = (*SAID, "fr_XX", "de_DE")
START, END = 1, 0
LONGEST, BOUND = 30, layers.LONGEST  # tokens of a source and of a text
CONFIG = {
    "bos_token_id": 1,
    "eos_token_id": END,
    "decoder_start_token_id": START,
    "max_new_tokens": 12,
    "no_repeat_ngram_size": 3,
}


def _cross() -> tuple[Node, ...]:
    shape = (1, layers.HEADS, symbol("source"), layers.SIZE)
    return tuple(state_(f"cross.0.{what}", "f32", shape) for what in ("keys", "values"))


def _table() -> Node:
    return layers.weights(50, len(WORDS), layers.WIDTH)


def encode() -> Graph:
    """`last_hidden_state [1, source, width]` of tokens `[1, source]`, and what `step` attends to."""
    tokens = input_("input_ids", "i64", (1, symbol("source")), low=0, high=len(WORDS) - 1)
    x = make("embedding", (_table(), tokens))
    updates = {
        state.attributes["name"]: layers.projected(x, 20 + i, 1, symbol("source"))
        for i, state in enumerate(_cross())
    }
    return Graph((tokens,), {"last_hidden_state": x}, {"source": (1, LONGEST)}, _cross(), updates)


def step() -> Graph:
    """`logits [1, kept, words]` of tokens `[1, seq]`."""
    seq, kept = symbol("seq"), symbol("kept")
    tokens = input_("input_ids", "i64", (1, seq), low=0, high=len(WORDS) - 1)
    keep = input_("logits_to_keep", "i64", (kept,))
    y, states, updates = layers.attends(make("embedding", (_table(), tokens)))
    cross = _cross()
    seen = make("attention", (layers.projected(y, 22, 1, seq), *cross), scale=layers.SIZE**-0.5)
    y = make("add", (y, layers.merged(seen, 1)))
    rows = make("embedding", (make("reshape", (y,), shape=(seq, layers.WIDTH)), keep))
    logits = make("linear", (rows, layers.weights(51, len(WORDS), layers.WIDTH)))
    outputs = {"logits": make("reshape", (logits,), shape=(1, kept, len(WORDS)))}
    dims = {"seq": (1, BOUND), "past": (0, BOUND), "kept": (1, BOUND), "source": (1, LONGEST)}
    return Graph((tokens, keep), outputs, dims, (*states, *cross), updates)


def tokenizer_text() -> str:
    """tokenizer.json: words between blanks; a source begins with its language and ends with `</s>`."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=".")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = (*WORDS[:2], *WORDS[-2:])
    made.add_special_tokens([tokenizers.AddedToken(word, normalized=False) for word in special])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="fr_XX $A </s>", special_tokens=[("fr_XX", len(WORDS) - 2), ("</s>", END)]
    )
    return str(made.to_str())


def write_model(folder: Path) -> Path:
    """The model as a graph's text, for `llmc.compile`."""
    folder.mkdir()
    (folder / "generation_config.json").write_text(json.dumps(CONFIG))
    names = {"function": "step", "tokens": "input_ids", "keep": "logits_to_keep", "logits": "logits"}
    sizes = {"vocabulary": len(WORDS), "max_length": BOUND}
    encoder = {"function": "encode", "source": "input_ids"}
    said = generation_config.read(folder, {}, **names, **sizes, length="past", encoder=encoder)
    module = Module({"encode": encode(), "step": step()})
    imported = Imported(
        module.functions["encode"],
        "translator",
        "text2text-generation",
        "",
        "",
        (),
        Tokenizer(folder / "tokenizer.json", LONGEST, 0, "</s>", made=tokenizer_text()),
        None,
        functions=module.functions,
        generation=said.facts,
    )
    graph_text.write(folder / "translator.txt", imported)
    return folder / "translator.txt"


def artifact(folder: Path) -> Callable[[Path], object]:
    """What compiles it to a path; for AVX2 alone, which is quickest.

    Args:
        folder: for the model.
    """
    return lambda path: llmc.compile(write_model(folder / "model"), path, target="x86-avx2")
