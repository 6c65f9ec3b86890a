"""Compiled models of many families that generate, session by session: small and random ones, by their logits' bits.

    python bench/families.py                        all of `CAUSAL` and `WRITERS`
    python bench/families.py --only llama,t5        these
    python bench/families.py --threads 1,2,3        on so many threads each (the default)

Each model is made, compiled and played. A prompt, 40 tokens one by one and two calls of several must have the logits of
one call and those of PyTorch to 1e-4 of the largest. Five sessions of different lengths, each with a source of its own
where the model reads one, are rewound and forked on the way and run in any company, in one run where the model allows
it: each must have the bits that it has alone, and any number of threads must give the same. Ends with 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import support_models
from apart import load_libraries

import llmc
from llmc.cli.output import print_table
from llmc.errors import LlmcError, LlmcWarning

CAUSAL = (
    *(
        "llama",
        "mistral",
        "gemma",
        "gemma2",
        "gemma3_text",
        "qwen2",
        "qwen3",
        "phi",
        "phi3",
        "gpt2",
        "gpt_neo",
    ),
    *("gpt_neox", "gptj", "bloom", "falcon", "opt", "olmo2", "stablelm", "starcoder2", "cohere", "granite"),
    *("smollm3", "mpt", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "mamba", "mamba2", "bamba", "rwkv"),
    *("falcon_h1", "recurrent_gemma"),
)
WRITERS = {  # of a text from another, or from a sound
    "t5": "T5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "mbart": "MBartForConditionalGeneration",
    "marian": "MarianMTModel",
    "m2m_100": "M2M100ForConditionalGeneration",
    "pegasus": "PegasusForConditionalGeneration",
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "speech_to_text": "Speech2TextForConditionalGeneration",
}
CALLS = (5, *(1,) * 40, 3, 4)  # tokens of each call
PLANS = ((5, 1, 3, 1), (17, 1, 1), (1, 1, 2, 1), (2, 9), (1,))  # those of five sessions
TOLERANCE = 1e-4  # of the largest logit
WORDS, START = 100, 2
Array = np.ndarray[Any, np.dtype[Any]]
Source = dict[str, Array] | None


class Played:
    """A model on so many threads: what its sessions say alone and in company."""

    def __init__(self, model: llmc.Model, sources: Sequence[Source]) -> None:
        self.model, self.sources = model, sources
        self.batches = model.functions["step"].batches
        self.texts = [_drawn(number, sum(plan)) for number, plan in enumerate(PLANS)]

    def begun(self, number: int) -> Any:
        """A session that has read its source."""
        session = self.model.session()
        if (source := self.sources[number]) is not None:
            session.call("encode", **source)
        return session

    def text(self, ids: Array, calls: Sequence[int]) -> Array:
        """All logits of a text, by calls of so many tokens."""
        with self.begun(0) as session:
            return np.concatenate([self._run([(session, part)])[0] for part in _cut(ids, calls)], 1)

    def alone(self) -> list[list[Array]]:
        """Of each session the logits of each call."""
        found = []
        for number, plan in enumerate(PLANS):
            with self.begun(number) as session:
                found.append([self._run([(session, part)])[0] for part in _cut(self.texts[number], plan)])
        return found

    def company(self, seed: int) -> list[list[Array]]:
        """The same where some sessions at a time go on, and before that go astray, come back or are replaced."""
        rng = np.random.default_rng(seed)
        sessions = [self.begun(number) for number in range(len(PLANS))]
        parts = [_cut(text, plan) for text, plan in zip(self.texts, PLANS, strict=True)]
        found: list[list[Array]] = [[] for _ in PLANS]
        while going := [n for n in range(len(PLANS)) if len(found[n]) < len(PLANS[n])]:
            chosen = rng.permutation(going)[: rng.integers(1, 4)].tolist()
            for number in chosen:
                sessions[number] = self._disturbed(sessions[number], rng)
            calls = [(sessions[number], parts[number][len(found[number])]) for number in chosen]
            for number, logits in zip(chosen, self._run(calls), strict=True):
                found[number].append(logits)
        for session in sessions:
            session.close()
        return found

    def _disturbed(self, session: Any, rng: np.random.Generator) -> Any:
        """What goes on in the session's place: itself or a fork, and before that either may have gone astray."""
        other = session.fork()
        if rng.random() < 0.5:
            self._run([(other, _drawn(9, 3))])
            if not _goes_back(other, session.lengths):
                other.close()
                return session
        kept, left = (session, other) if rng.random() < 0.5 else (other, session)
        left.close()
        return kept

    def _run(self, calls: Sequence[tuple[Any, Array]]) -> list[Array]:
        """The logits of each, in one run if the model has such."""
        given = [
            (session, {"input_ids": ids[None], "logits_to_keep": np.arange(len(ids))})
            for session, ids in calls
        ]
        if self.batches:
            outputs = self.model.run_sessions(given, function="step")
        else:
            outputs = [session.call("step", **inputs) for session, inputs in given]
        return [np.array(each["logits"]) for each in outputs]


def _goes_back(session: Any, lengths: dict[str, int]) -> bool:
    """Whether it is where it was; a recurrence keeps no trace of that."""
    try:
        session.rewind(lengths["past"])
    except (KeyError, LlmcError):
        return False
    return True


def _drawn(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).integers(4, WORDS, count)


def _cut(ids: Array, calls: Sequence[int]) -> list[Array]:
    return np.split(ids, np.cumsum(calls)[:-1])


def tried(kind: str, threads: Sequence[int]) -> dict[str, Any]:
    """What was found of a family."""
    model = _made(kind)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")
        model = type(model).from_pretrained(f"{folder}/model").eval()  # some compute their positions anew
        llmc.compile(f"{folder}/model", f"{folder}/m.llmc", target="native")
        return {"family": kind, **_compared(model, Path(folder) / "m.llmc", threads)}


def _made(kind: str) -> Any:
    """The smallest model of a family that can be made and run."""
    reason: Exception | None = None
    for level in range(len(support_models.LEVELS)):
        try:
            model = support_models.model_of(kind, level, WRITERS.get(kind) or _causal(kind))
            if kind in WRITERS:
                model.generation_config.decoder_start_token_id = START
            else:
                _by_torch(model, None, _drawn(0, 8))
            return model
        except Exception as error:  # whatever a configuration made by rule runs into
            reason = error
    raise SystemExit(f"{kind} cannot be made: {reason}")


def _causal(kind: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    name = NAMES[kind]
    return name if isinstance(name, str) else str(name[0])


def _by_torch(model: Any, source: Source, ids: Array) -> Array:
    """transformers' logits of a text at once."""
    import torch

    text = torch.from_numpy(ids[None])
    given = (
        {"input_ids": text}
        if source is None
        else {
            **{name: torch.from_numpy(array) for name, array in source.items()},
            "decoder_input_ids": text,
        }
    )
    with torch.no_grad():
        return np.array(model(**given, use_cache=False).logits)


def _compared(model: Any, path: Path, threads: Sequence[int]) -> dict[str, Any]:
    ids = _drawn(0, sum(CALLS))
    row: dict[str, Any] = {"company": True, "threads": True}
    first: list[Any] = []
    for count in threads:
        with llmc.load(path, threads=count) as loaded:
            played = Played(loaded, _sources(loaded))
            texts, alone = [played.text(ids, calls) for calls in (CALLS, (len(ids),))], played.alone()
            row["company"] &= _same(played.company(count), alone)
            if not first:
                first = [texts, alone]
                wanted = _by_torch(model, played.sources[0], ids)
                row |= _away(*texts, wanted) | {"one_run": played.batches}
            row["threads"] &= _same([texts, alone], first)
    row["good"] = row["company"] and row["threads"] and max(row["one_pass"], row["torch"]) <= TOLERANCE
    return row


def _sources(model: llmc.Model) -> list[Source]:
    """One for each session, longer and longer where the model takes sources of any length."""
    if "encode" not in model.functions:
        return [None] * len(PLANS)
    ((name, spec),) = model.functions["encode"].inputs.items()
    made: list[Source] = []
    for number in range(len(PLANS)):
        shape = [
            size if isinstance(size, int) else max(12, model.dims[size][0]) + 7 * number
            for size in spec.shape
        ]
        rng = np.random.default_rng(number)
        made.append(
            {
                name: rng.integers(4, WORDS, shape)
                if name == "input_ids"
                else rng.normal(size=shape).astype("f4")
            }
        )
    return made


def _away(steps: Array, whole: Array, wanted: Array) -> dict[str, float]:
    scale = np.abs(wanted).max()
    pairs = {"one_pass": (steps, whole), "torch": (steps, wanted)}
    return {name: float(np.abs(a - b).max() / scale) for name, (a, b) in pairs.items()}


def _same(found: Any, wanted: Any) -> bool:
    """The same bits, in lists of lists of arrays."""
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    return bool(np.array_equal(found.view(np.int32), wanted.view(np.int32)))


def main() -> int:
    """Try all, and tell."""
    options = _options()
    load_libraries()
    warnings.simplefilter("ignore", LlmcWarning)
    rows = []
    for kind in options.only:
        try:
            rows.append(tried(kind, options.threads))
        except LlmcError as error:
            rows.append({"family": kind, "good": False, "error": str(error)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    columns = ["family", "one pass", "PyTorch", "bits in company", "in one run", "bits on any threads"]
    print_table("", columns, list(map(_line, rows)))
    print(f"{sum(row['good'] for row in rows)} of {len(rows)}")
    return not all(row["good"] for row in rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join((*CAUSAL, *WRITERS)), help="families, with commas between")
    parser.add_argument("--threads", default="1,2,3", help="default: 1,2,3")
    options = parser.parse_args()
    options.only = options.only.split(",")
    options.threads = list(map(int, options.threads.split(",")))
    return options


def _line(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["family"], row["error"].splitlines()[0], "", "", "", ""]
    told = [("no", "yes")[row[name]] for name in ("company", "one_run", "threads")]
    return [row["family"], f"{row['one_pass']:.1e}", f"{row['torch']:.1e}", *told]


if __name__ == "__main__":
    sys.exit(main())
