"""A hand-made model of images and text: the decoder of writers.py, for which `see` makes two rows of each image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stateful_graphs as layers
import tokenizers
import writers

import llmc
from llmc.compiler.dims import symbol
from llmc.compiler.frontends import generation_config, graph_text
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph, Node
from llmc.compiler.module import Module
from llmc.compiler.ops import constant, input_, make, state_

WORDS = (*writers.WORDS, "<image>")
TOKEN, SIDE, TOKENS, MOST = len(WORDS) - 1, 4, 2, 8
_PIXELS = 3 * SIDE * SIDE
ROWS = state_("images", "f32", (symbol("images"), TOKENS, layers.WIDTH))
COUNT = state_("images.rows", "f32", (1,))
MARKS = state_("images.marks", "f32", (symbol("past"),), grows=0)
CHAT = (
    "{{ bos_token }} {% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
IMAGES = {
    **{"function": "see", "dim": "images", "token": TOKEN, "rows": TOKENS, "together": ""},
    "texts": {"placeholder": "<image>", "row": "<image>"},
}
PREPROCESS = {"size": {"height": SIDE, "width": SIDE}, "resample": 2, "rescale_factor": 1 / 255}


def see() -> Graph:
    """`image_embeds [images, 2, width]` of `pixel_values`."""
    images = symbol("images")
    pixels = input_("pixel_values", "f32", (images, 3, SIDE, SIDE))
    flat = make("reshape", (pixels,), shape=(images, _PIXELS))
    made = make("linear", (flat, layers.weights(60, TOKENS * layers.WIDTH, _PIXELS)))
    rows = make("reshape", (made,), shape=(images, TOKENS, layers.WIDTH))
    one, zero = (constant(np.float32(n), f"n{n}") for n in (1, 0))
    ones = make("where", (make("eq", (rows, rows)), one, zero))
    count = make("sum", (make("slice", (ones,), axis=2, start=0, stop=1),), axes=(0, 1, 2), keepdims=False)
    updates = {"images": rows, "images.rows": make("reshape", (count,), shape=(1,))}
    return Graph((pixels,), {"image_embeds": rows}, {"images": (1, MOST)}, (ROWS, COUNT), updates)


def step() -> Graph:
    """`logits [1, kept, words]` of tokens `[1, seq]`, of which the image's are rows of `see`."""
    seq, kept, images = symbol("seq"), symbol("kept"), symbol("images")
    tokens = input_("input_ids", "i64", (1, seq), low=0, high=TOKEN)
    keep = input_("logits_to_keep", "i64", (kept,))
    y, marks = _embedded(make("reshape", (tokens,), shape=(seq,)), images)
    y, states, updates = layers.attends(make("reshape", (y,), shape=(1, seq, layers.WIDTH)))
    rows = make("embedding", (make("reshape", (y,), shape=(seq, layers.WIDTH)), keep))
    logits = make("linear", (rows, layers.weights(51, len(WORDS), layers.WIDTH)))
    outputs = {"logits": make("reshape", (logits,), shape=(1, kept, len(WORDS)))}
    bound = (1, writers.BOUND)
    dims = {"seq": bound, "past": (0, writers.BOUND), "kept": bound, "images": (1, MOST)}
    updates = {**updates, "images.marks": make("concat", (MARKS, marks), axis=0)}
    return Graph((tokens, keep), outputs, dims, (*states, MARKS, ROWS, COUNT), updates)


def _embedded(tokens: Node, images: Any) -> tuple[Node, Node]:
    """Tokens as vectors, and 1 for each that is a row."""
    zero, one = (constant(np.float32(n), f"n{n}") for n in (0, 1))
    named = make("where", (make("eq", (tokens, constant(np.int64(TOKEN), "token"))), one, zero))
    before = make("sum", (MARKS,), axes=(0,), keepdims=False)
    number = make("add", (make("cumsum", (named,), axis=0), before))
    held = make("le", (number, COUNT))
    marks = make("where", (held, named, zero))
    last = constant(np.float32(TOKENS), "tokens")
    most = make("mul", (make("cast", (make("dim", (), value=images),), dtype="f32"), last))
    at = make("maximum", (make("sub", (make("minimum", (number, most)), one)), zero))
    table = make("reshape", (ROWS,), shape=(images * TOKENS, layers.WIDTH))
    seen = make("embedding", (table, make("cast", (at,), dtype="i64")))
    words = make("embedding", (layers.weights(50, len(WORDS), layers.WIDTH), tokens))
    chosen = make("reshape", (make("eq", (marks, one)),), shape=(symbol("seq"), 1))
    return make("where", (chosen, seen, words)), marks


def tokenizer_text() -> str:
    """tokenizer.json: words between blanks, and `<image>` wherever it stands."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=".")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = (*WORDS[:2], "<image>")
    made.add_special_tokens([tokenizers.AddedToken(word, normalized=False) for word in special])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return str(made.to_str())


def write_model(folder: Path) -> Path:
    """The model as a graph's text, for `llmc.compile`."""
    folder.mkdir()
    writers.write_folder(folder / "said")
    (folder / "said" / "chat_template.jinja").write_text(CHAT)
    names = {"function": "step", "tokens": "input_ids", "keep": "logits_to_keep", "logits": "logits"}
    sizes = {"vocabulary": len(WORDS), "max_length": writers.BOUND}
    said = generation_config.read(folder / "said", {}, **names, **sizes, length="past", images=IMAGES)
    module = Module({"see": see(), "step": step()})
    imported = Imported(
        module.functions["see"],
        "seer",
        "image-text-to-text",
        "",
        "",
        (),
        Tokenizer(folder / "tokenizer.json", writers.BOUND, 0, "</s>", made=tokenizer_text()),
        None,
        functions=module.functions,
        preprocess=PREPROCESS,
        generation=said.facts,
        chat_template=said.template,
    )
    graph_text.write(folder / "seer.txt", imported)
    return folder / "seer.txt"


def artifact(folder: Path) -> Callable[[Path], object]:
    """What compiles it to a path; for AVX2 alone, which is quickest."""
    return lambda path: llmc.compile(write_model(folder / "model"), path, target="x86-avx2")
