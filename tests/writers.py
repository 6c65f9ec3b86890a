"""A hand-made language model of 32 words: an embedding, a causal layer whose keys and values grow, and a head."""

from __future__ import annotations

from pathlib import Path

import stateful_graphs as layers
import tokenizers

from llmc.compiler.dims import symbol
from llmc.compiler.frontends import generation_config, graph_text
from llmc.compiler.frontends.imported import Imported
from llmc.compiler.frontends.tokenizer import Tokenizer
from llmc.compiler.graph import Graph
from llmc.compiler.module import Module
from llmc.compiler.ops import input_, make

_WORDS = (
    "</s> <s> user: assistant: a the one two three red green small old house tree river stone bird fish sees finds "
    "takes gives and or under over with near far . ,"
)
WORDS = tuple(_WORDS.split())
CHAT = (
    "{{ bos_token }} {% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
BOUND = layers.LONGEST


def step() -> Graph:
    """`logits [1, kept, words]` of tokens `[1, seq]`."""
    seq, kept = symbol("seq"), symbol("kept")
    tokens = input_("input_ids", "i64", (1, seq), low=0, high=len(WORDS) - 1)
    keep = input_("logits_to_keep", "i64", (kept,))
    table = layers.weights(50, len(WORDS), layers.WIDTH)
    y, states, updates = layers.attends(make("embedding", (table, tokens)))
    rows = make("embedding", (make("reshape", (y,), shape=(seq, layers.WIDTH)), keep))
    logits = make("linear", (rows, layers.weights(51, len(WORDS), layers.WIDTH)))
    outputs = {"logits": make("reshape", (logits,), shape=(1, kept, len(WORDS)))}
    dims = {"seq": (1, BOUND), "past": (0, BOUND), "kept": (1, BOUND)}
    return Graph((tokens, keep), outputs, dims, states, updates)


def tokenizer_text() -> str:
    """tokenizer.json: words between blanks; a text begins with `<s>`."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=".")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([tokenizers.AddedToken(word, normalized=False) for word in WORDS[:2]])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return str(made.to_str())


def write_folder(folder: Path) -> None:
    """What a Hugging Face folder says of generation."""
    folder.mkdir()
    (folder / "generation_config.json").write_text(
        '{"bos_token_id": 1, "eos_token_id": 0, "max_new_tokens": 12, "temperature": 0.8, "top_k": 8}'
    )
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (folder / "chat_template.jinja").write_text(CHAT)


def write_model(folder: Path) -> Path:
    """The model as a graph's text, for `llmc.compile`."""
    folder.mkdir()
    write_folder(folder / "said")
    names = {"function": "step", "tokens": "input_ids", "keep": "logits_to_keep", "logits": "logits"}
    sizes = {"vocabulary": len(WORDS), "max_length": BOUND}
    said = generation_config.read(folder / "said", {}, **names, **sizes, length="past")
    module = Module({"step": step()})
    imported = Imported(
        module.functions["step"],
        "writer",
        "text-generation",
        "",
        "",
        (),
        Tokenizer(folder / "tokenizer.json", BOUND, 0, "</s>", made=tokenizer_text()),
        None,
        functions=module.functions,
        generation=said.facts,
        chat_template=said.template,
    )
    graph_text.write(folder / "writer.txt", imported)
    return folder / "writer.txt"
