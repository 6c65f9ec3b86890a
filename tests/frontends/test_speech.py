"""Speech to text, window by window: the tokens, times and languages that transformers' own `generate` gives."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kept_graphs
import numpy as np
import pytest
import torch
from random_any import made
from random_seq2seq import CASES

from llmc.cli import run as run_command
from llmc.cli import speech as command
from llmc.cli.media import Told
from llmc.compiler.frontends import generation_config, generation_settings, speech_config
from llmc.compiler.interpret import step
from llmc.errors import LlmcError, LlmcWarning
from llmc.runtime import mel
from llmc.runtime.fields import Field
from llmc.runtime.generation_entry import read_generation
from llmc.runtime.signature import TensorInfo
from llmc.runtime.source import want_source
from llmc.runtime.speech import transcribe

START, END, FIRST = 58, 59, 71  # the first token, the last, and the timestamp of 0.00 s
SAID = {
    **{"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": END, "bos_token_id": END},
    **{"lang_to_id": {"<|en|>": 60, "<|de|>": 61}, "task_to_id": {"transcribe": 62, "translate": 63}},
    **{"is_multilingual": True, "no_timestamps_token_id": FIRST - 1, "max_initial_timestamp_index": 10},
    **{"suppress_tokens": [5, 6, *range(60, 70)], "begin_suppress_tokens": [1, END], "max_length": 40},
}
WINDOW, HOP = 6400, 160  # samples


class Played:
    """What `transcribe` sees of an artifact; its functions are played by the interpreter."""

    def __init__(self, found: Any, said: dict[str, Any]) -> None:
        functions = {
            name: SimpleNamespace(
                inputs=[SimpleNamespace(name=n.attributes["name"]) for n in graph.inputs],
                outputs=[SimpleNamespace(name=n) for n in graph.outputs],
            )
            for name, graph in found.functions.items()
        }
        steps = {
            "kind": "whisper",
            "sampling_rate": 16000,
            "bins": 8,
            "samples": WINDOW,
            "window": 400,
            "hop": HOP,
        }
        facts = {**found.generation, **said}
        self.manifest = SimpleNamespace(
            generation=read_generation(Field(facts, "here", "generation"), functions, {}, {}),
            raw={"preprocess": steps},
            tokenizer=None,
        )
        self.graphs, self.path, self.task, self.generates = found.functions, Path("here"), found.task, True
        self.inputs = {"input_features": None}
        axes = {"input_ids": ("1", "seq"), "logits_to_keep": ("kept",)}
        self.functions = {"step": SimpleNamespace(inputs={k: TensorInfo("i64", v) for k, v in axes.items()})}
        self.dims = {"seq": (1, 40), "kept": (1, 40)}
        cross = {n.attributes["name"]: n for n in found.functions["encode"].states}
        self.states = {name: SimpleNamespace(shape=node.shape) for name, node in cross.items()}
        self.held: dict[str, Any] = {}

    @contextlib.contextmanager
    def session(self) -> Any:
        yield self

    def reset(self) -> None:
        self.held = {}

    def rewind(self, length: int) -> None:
        self.held = {k: v for k, v in self.held.items() if k.startswith("cross.")}

    def run(self, inputs: Any, function: str) -> Any:
        outputs, self.held = step(self.graphs[function], inputs, self.held)
        return outputs


@pytest.fixture(scope="module")
def theirs() -> Any:
    model = made("WhisperForConditionalGeneration", CASES["WhisperForConditionalGeneration"])
    for name, value in SAID.items():
        setattr(model.generation_config, name, value)
    return model


@pytest.fixture(scope="module")
def ours() -> Any:
    found = kept_graphs.imported(
        made("WhisperForConditionalGeneration", CASES["WhisperForConditionalGeneration"])
    )
    facts = {
        "eos": [END],
        "speech": speech_config.facts(SAID, {}, 100, "here"),
        "encoder": {**found.generation["encoder"], "start": START},
        "defaults": generation_settings.options(
            {k: v for k, v in SAID.items() if k not in speech_config.SETTINGS}, "here"
        ),
    }
    return Played(found, facts)


def sound(windows: float, seed: int = 0) -> Any:
    return (0.1 * np.random.default_rng(seed).normal(size=int(windows * WINDOW))).astype(np.float32)


def heard(model: Any, samples: Any, **asked: Any) -> Any:
    usual = {"language": None, "task": None, "timestamps": None}
    told = {name: asked.pop(name, value) for name, value in usual.items()}
    return transcribe(model, samples, *told.values(), (16000, False), None, {"max_new_tokens": 9, **asked})


def generated(model: Any, samples: Any, **asked: Any) -> Any:
    long = len(samples) > WINDOW
    filled = samples if long else np.pad(samples, (0, WINDOW - len(samples)))
    features = torch.from_numpy(mel.whisper(filled, 8, 16000, 400, HOP))[None]
    return model.generate(features, return_segments=True, **{"max_new_tokens": 9, **asked})


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"language": "de"},
        {"language": "german", "task": "translate"},
        {"task": "transcribe"},
        {"timestamps": True},
        {"language": "en", "timestamps": True},
    ],
    ids=str,
)
def test_a_window_is_what_transformers_makes_of_it(theirs: Any, ours: Any, asked: dict[str, Any]) -> None:
    for seed in range(3):
        samples = sound(0.8, seed)
        named = {{"timestamps": "return_timestamps"}.get(k, k): v for k, v in asked.items()}
        wanted = generated(theirs, samples, **named)
        found = heard(ours, samples, **asked)
        assert list(found.ids) == [int(t) for part in wanted["segments"][0] for t in part["tokens"]]
        times = [(float(part["start"]), float(part["end"])) for part in wanted["segments"][0]]
        assert [(s.start, s.end) for s in found.segments] == pytest.approx(times)


def test_long_sounds_are_what_transformers_makes_of_them(theirs: Any, ours: Any) -> None:
    """Windows begin at the last timestamp of the one before."""
    counts = set()
    for seed in range(4):
        samples = sound(3.3, seed)
        wanted = generated(theirs, samples, language="en", return_timestamps=True)["segments"][0]
        found = heard(ours, samples, language="en")
        assert [list(s.ids) for s in found.segments] == [part["tokens"].tolist() for part in wanted]
        times = [(float(part["start"]), float(part["end"])) for part in wanted]
        assert [(s.start, s.end) for s in found.segments] == [pytest.approx(t) for t in times]
        counts.add(len(found.segments))
    assert max(counts) > 3


@pytest.mark.parametrize("windows", [0.8, 2.5])
def test_max_length_is_without_the_prompt(
    theirs: Any, ours: Any, windows: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in transformers, which adds the prompt to it, and does so again at each window."""
    monkeypatch.setattr(theirs.generation_config, "max_length", 12)
    options = {**ours.manifest.generation.defaults, "max_length": 12}
    entry = dataclasses.replace(ours.manifest.generation, defaults=options)
    monkeypatch.setattr(ours.manifest, "generation", entry)
    for seed in range(3):
        samples = sound(windows, seed)
        wanted = generated(theirs, samples, max_new_tokens=None)["segments"][0]
        found = heard(ours, samples, max_new_tokens=None)
        assert [list(s.ids) for s in found.segments] == [part["tokens"].tolist() for part in wanted]


def test_a_part_of_a_frame_is_no_other_window(theirs: Any, ours: Any) -> None:
    """Sounds are long by their frames: less than one beyond a window is not heard, and brings no timestamps."""
    for more in (1, HOP - 1, HOP):
        samples = np.append(sound(1), sound(1)[:more])
        wanted = generated(theirs, samples, language="en")["segments"][0]
        found = heard(ours, samples, language="en")
        assert [list(s.ids) for s in found.segments] == [part["tokens"].tolist() for part in wanted]


def test_beams_of_a_folder_are_told(tmp_path: Path) -> None:
    """Texts of speech are made of the likeliest tokens, and it is no silence where the folder wants more."""
    stated = {**SAID, "num_beams": 3, "length_penalty": 1.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    names = {"function": "step", "tokens": "input_ids", "logits": "logits"}
    with pytest.warns(LlmcWarning, match="llmc does not know num_beams"):
        made = generation_config.read(tmp_path, {}, **names, vocabulary=100, max_length=40, speech=True)
    assert "num_beams" not in made.facts["defaults"]


def test_the_language_is_heard(theirs: Any, ours: Any) -> None:
    languages = set()
    for seed in range(6):
        samples = sound(1, seed)
        features = torch.from_numpy(mel.whisper(samples, 8, 16000, 400, HOP))[None]
        found = heard(ours, samples)
        assert theirs.detect_language(features).tolist() == [60 if found.language == "en" else 61]
        languages.add(found.language)
    assert languages <= {"en", "de"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"language": "klingon"}, "the model has no language 'klingon'"),
        ({"language": "germn"}, "near it: german"),
        ({"task": "sing"}, "the model has no task 'sing'"),
        ({"temperature": 0.5}, "no option 'temperature' of transcribe"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_what_makes_no_sense(ours: Any, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(LlmcError) as caught:
        heard(ours, sound(0.5), **asked)
    assert told in str(caught.value)


def test_text_for_a_model_that_hears() -> None:
    """Python's users and the command's are both told what to do."""
    inputs = {"input_features": TensorInfo("f32", (1, 80, 3000))}
    model: Any = SimpleNamespace(path="here", functions={"encode": SimpleNamespace(inputs=inputs)})
    encoder: Any = SimpleNamespace(function="encode", source="input_features")
    with pytest.raises(LlmcError) as caught:
        want_source(model, encoder, [1])
    assert "the model reads input_features, not text" in str(caught.value)
    assert "model.transcribe(audio), llmc run --audio FILE" in str(caught.value)


def test_a_text_for_the_command(ours: Any) -> None:
    """It is sent to sounds, not to prompts that the model does not take either."""
    with pytest.raises(LlmcError, match="the model writes down speech") as caught:
        run_command._run_texts(ours, [], None, False, None, False)
    assert caught.value.hint == "give a sound: --audio FILE"


def test_a_session_of_another_model(ours: Any) -> None:
    with pytest.raises(LlmcError, match="the session is not one of this model"):
        transcribe(ours, sound(0.2), None, None, None, (16000, False), SimpleNamespace(model=None), {})


def test_sounds_that_cannot_be(ours: Any, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    reads_more = importlib.util.find_spec("soundfile") is not None
    for audio, told in (
        (tmp_path / "a.wav", "the sound cannot be read" if reads_more else "not a WAV file"),
        (tmp_path / "b.wav", "the sound was not found"),
    ):
        with pytest.raises(LlmcError, match=told):
            heard(ours, audio)
    for factor, told in ((32768, "the samples reach"), (np.nan, "hold numbers that are none")):
        with pytest.raises(LlmcError, match=told):
            heard(ours, sound(0.2) * np.float32(factor))
    with pytest.raises(LlmcError, match="no token is left to choose from"):
        heard(ours, sound(0.2), suppress_tokens=list(range(100)))
    with pytest.raises(LlmcError, match="the audio has 8000 samples a second, the model takes 16000"):
        transcribe(ours, sound(1), None, None, None, (8000, False), None, {})


def test_a_model_without_timestamps_hears_one_window(ours: Any) -> None:
    silent = Played(SimpleNamespace(functions=ours.graphs, generation=_facts(ours), task=ours.task), {})
    heard(silent, sound(1))
    with pytest.raises(
        LlmcError, match="the model makes no timestamps, which sounds of more than one window need"
    ):
        heard(silent, sound(1.5))
    with pytest.raises(LlmcError, match="language cannot be set: the model has but one"):
        heard(silent, sound(1), language="en")


def _facts(ours: Any) -> dict[str, Any]:
    names = {"function": "step", "tokens": "input_ids", "keep": "logits_to_keep", "logits": "logits"}
    encoder = {"function": "encode", "source": "input_features", "start": START}
    sizes = {"length": "past", "vocabulary": 100, "max_length": 40}
    return {**names, **sizes, "eos": [END], "defaults": {}, "encoder": encoder, "speech": {}}


def test_the_command_prints_what_was_said(ours: Any, tmp_path: Path, capsys: Any) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((sound(2.5) * 32767).astype("<i2").tobytes())
    files = [tmp_path / "a.wav", tmp_path / "none.wav"]
    spoken = {"language": "en"}
    with pytest.raises(LlmcError, match="1 of 2 files"):
        command.run(ours, files, False, Told(True, None), spoken)
    found = json.loads(capsys.readouterr().out)
    assert found[0]["language"] == "en"
    assert [set(s) for s in found[0]["segments"]][:1] == [{"start", "end", "text"}]
    assert "the sound was not found" in found[1]["error"]
