"""Those who write down speech by Whisper: llmc's artifacts, transformers, CTranslate2 and OpenVINO.

Each is told to take the likeliest token of English speech without timestamps. What comes before the model, the log-mel
spectrogram, is llmc's for all but transformers, which has its own, and is part of everybody's time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from spoken import RATE

from llmc.runtime import mel

Array = np.ndarray[Any, np.dtype[Any]]
Listener = Callable[[Array], list[int]]  # samples -> the tokens of what is said
LANGUAGE, TASK = "en", "transcribe"


def spectrogram(samples: Array) -> Array:
    """f32 [1, 80, 3000] of a sound of at most 30 s."""
    return mel.whisper(np.pad(samples, (0, 30 * RATE - len(samples))), 80, RATE, 400, 160)[None]


def llmc_artifact(path: Path, threads: int) -> Listener:
    """`transcribe` in one session that stays open."""
    from llmc.runtime import load

    session = load(path, threads=threads).session()

    def listen(samples: Array) -> list[int]:
        made = session.model.transcribe(
            samples, language=LANGUAGE, task=TASK, sampling_rate=RATE, session=session
        )
        return list(made.ids)

    return listen


def transformers(folder: Path, threads: int) -> Listener:
    """PyTorch in fp32, greedy."""
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    hear = WhisperFeatureExtractor.from_pretrained(folder)
    end = int(model.generation_config.eos_token_id)

    def listen(samples: Array) -> list[int]:
        torch.set_num_threads(threads)
        heard = hear(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        with torch.inference_mode():
            made = model.generate(
                **heard, language=LANGUAGE, task=TASK, num_beams=1, do_sample=False, return_timestamps=False
            )
        return [token for token in made[0].tolist() if token < end]

    return listen


def prompt(folder: Path) -> list[int]:
    """The tokens before the text, as transformers has them."""
    said = json.loads((folder / "generation_config.json").read_text())
    start, language = said["decoder_start_token_id"], said["lang_to_id"][f"<|{LANGUAGE}|>"]
    return [start, language, said["task_to_id"][TASK], said["no_timestamps_token_id"]]


def ctranslate2(folder: Path, source: Path, threads: int, compute: str) -> Listener:
    """
    Args:
        folder: of transformers' model; `source` is that of CTranslate2's.
        compute: float32 or int8, what the weights are computed in.
    """
    import ctranslate2

    model = ctranslate2.models.Whisper(
        str(source), "cpu", compute_type=compute, inter_threads=1, intra_threads=threads
    )
    before, longest = prompt(folder), 448

    def listen(samples: Array) -> list[int]:
        heard = ctranslate2.StorageView.from_array(np.ascontiguousarray(spectrogram(samples)))
        (made,) = model.generate(heard, [before], beam_size=1, max_length=longest)
        return list(made.sequences_ids[0])

    return listen


def openvino(folder: Path, cache: Path, threads: int, int8: bool) -> Listener:
    """An encoder that leaves keys and values, and a decoder that keeps its own (bench/whisper_openvino.py)."""
    from whisper_openvino import Whisper

    return Whisper(folder, cache, threads, int8, prompt(folder)).listen
