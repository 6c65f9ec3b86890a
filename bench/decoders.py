"""Those who race in bench/decoding.py: each holds a text and is given the tokens behind it.

    a folder of llmc        a session of the artifact
    a GGUF file             llama.cpp, by `llama_cpp`
    a folder of stateful.py OpenVINO, its cache kept inside the model

Equal threads for all; no other setting that llmc has no like of. What else OpenVINO is told lies in its folder.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import llmc
from llmc.runtime.prompts import generation_of

LENGTH = 2048
OPENVINO, SETTINGS = "openvino_model.xml", "settings.json"


class Racer(Protocol):
    """One program with one model."""

    def hold(self, tokens: Sequence[int]) -> None:
        """Hold these tokens, and no other."""

    def run(self, tokens: Sequence[int]) -> int:
        """Run tokens behind those that are held, which they join; the likeliest next one."""


class Llmc:
    """A session of an artifact."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = llmc.load(path, threads=threads)
        self.session = self.model.session()

    def hold(self, tokens: Sequence[int]) -> None:
        self.session.reset()
        if tokens:
            self.run(tokens)

    def run(self, tokens: Sequence[int]) -> int:
        given = {"input_ids": np.array([tokens], np.int64), "logits_to_keep": np.array([len(tokens) - 1])}
        return int(self.session.run(given)["logits"][0, -1].argmax())

    def traffic(self, depth: int) -> float:
        """Bytes that a next token behind `depth` tokens reads and writes, as the kernels say."""
        entry = generation_of(self.model)
        inputs = self.model.functions[entry.function].inputs
        axes = [inputs[entry.tokens].shape[1], *(inputs[entry.keep].shape if entry.keep else ())]
        sizes: dict[str, Any] = {axis: 1 for axis in axes if isinstance(axis, str)}
        if entry.length:
            sizes[entry.length] = depth
        return float(self.model.benchmark(function=entry.function, duration=0.05, **sizes).bytes)


class LlamaCpp:
    """A context of llama.cpp."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet  # C keeps it
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = LENGTH, LENGTH, 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def hold(self, tokens: Sequence[int]) -> None:
        memory = self.lib.llama_get_memory(self.context)
        self.lib.llama_memory_seq_rm(memory, -1, -1, -1)
        if tokens:
            self.run(tokens)

    def run(self, tokens: Sequence[int]) -> int:
        array = (self.lib.llama_token * len(tokens))(*tokens)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        logits = self.lib.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.size,)).argmax())


class OpenVino:
    """A request of a stateful model, for latency."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        settings |= json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        compiled = openvino.Core().compile_model(str(path / OPENVINO), "CPU", settings)
        self.names = [next(iter(port.get_names())) for port in compiled.inputs]
        self.request = compiled.create_infer_request()
        self.length = 0

    def hold(self, tokens: Sequence[int]) -> None:
        self.request.reset_state()
        self.length = 0
        if tokens:
            self.run(tokens)

    def run(self, tokens: Sequence[int]) -> int:
        begin, self.length = self.length, self.length + len(tokens)
        places = np.arange(begin, self.length, dtype=np.int64)
        given = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, self.length), np.int64),
            "position_ids": places[None],
            "cache_position": places,
            "beam_idx": np.zeros(1, np.int32),
        }
        feed = {name: given[name.removeprefix("input.")] for name in self.names}
        return int(self.request.infer(feed, share_inputs=True, share_outputs=True)[0][0, -1].argmax())


def opened(path: Path, threads: int) -> Racer:
    """The racer for a path."""
    if path.suffix == ".gguf":
        return LlamaCpp(path, threads)
    return OpenVino(path, threads) if (path / OPENVINO).exists() else Llmc(path, threads)


def written(racer: Racer, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest text of `count` tokens behind a prompt."""
    racer.hold([])
    text = [racer.run(prompt)]
    while len(text) < count:
        text.append(racer.run(text[-1:]))
    return text


def told(racer: Racer, prompt: Sequence[int], text: Sequence[int]) -> list[int]:
    """What a racer finds likeliest behind the prompt, and behind each token of a text but the last."""
    racer.hold([])
    return [racer.run(prompt), *(racer.run([token]) for token in text[:-1])]
