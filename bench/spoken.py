"""Speech with what is said in it: sentences spoken by espeak-ng, and recordings of people that a package holds."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import fetch

from llmc.runtime.audio import read_audio, resampled

Array = np.ndarray[Any, np.dtype[Any]]
RATE = 16000
VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb-scotland")  # of espeak-ng, in turns
WORDS_A_MINUTE = 150
SENTENCES = (
    "Open the door.",
    "Where is the station?",
    "The train leaves at nine.",
    "She bought bread, butter and cheese.",
    "Please turn off the lights before you go.",
    "The old man walked slowly along the river.",
    "I would like a cup of tea with milk.",
    "Rain is expected in the north tomorrow afternoon.",
    "The children were playing in the garden when it began to snow.",
    "He opened the letter, read it twice, and put it in his pocket.",
    "The museum is closed on Mondays, but you can visit it every other day of the week.",
    "My sister works in a hospital and often comes home late at night.",
    "If the weather is good on Saturday, we will drive to the coast and have lunch by the sea.",
    "The company said that it had sold more cars this year than in any year before.",
    "When the teacher asked a question, nobody in the room wanted to be the first to answer.",
    "The farmer has two hundred sheep, thirty cows, and a dog that follows him wherever he goes.",
    "Before you cook the rice, wash it in cold water until the water is clear, then let it stand for half an hour.",
    "Scientists have found that people who walk for thirty minutes every day sleep better, and feel less tired in "
    "the morning, than people who do not.",
    "The captain told the passengers that the ship would stay in the harbour until the storm had passed, and that "
    "there was enough food and water on board for everyone.",
    "Many years ago, in a small village at the foot of a mountain, there lived a carpenter who made chairs and "
    "tables of such quality that rich families from the city came to his workshop and waited for months to buy "
    "what he had made.",
)


@dataclass(frozen=True)
class Said:
    """A sound f32 [samples], 16,000 a second, and the words in it."""

    name: str
    text: str
    samples: Array

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / RATE


def spoken(sentences: Sequence[str] = SENTENCES) -> list[Said]:
    """Sentences by espeak-ng, its voices in turns."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spoken.wav"
        for number, text in enumerate(sentences):
            voice = VOICES[number % len(VOICES)]
            command = ["espeak-ng", "-v", voice, "-s", str(WORDS_A_MINUTE), "-w", str(file), text]
            subprocess.run(command, check=True)
            found.append(Said(f"spoken {number + 1} ({voice})", text, resampled(*read_audio(file), RATE)))
    return found


def recorded() -> list[Said]:
    """People reading, five sentences of a novel and five hands of cards; their texts have no punctuation.

    Raises:
        FetchError: the package cannot be had.
    """
    home, found = fetch("recordings"), []
    for place in ("librivox/transcription", "cards/cards.transcription"):
        for line in (home / place).read_text().splitlines():
            match = re.fullmatch(r"<s> (.*?)\s*</s> \((.+)\)", line)
            assert match is not None, line
            samples, rate = read_audio((home / place).parent / f"{match[2]}.wav")
            found.append(Said(f"recorded {match[2][-4:]}", match[1], resampled(samples, rate, RATE)))
    return found


def words(text: str) -> list[str]:
    """As Whisper's makers compare them: small letters, no punctuation, numbers as digits, no contractions."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return str(EnglishTextNormalizer({})(text)).split()


def errors(wanted: Sequence[str], found: Sequence[str]) -> int:
    """The fewest words to replace, leave out or put in (Levenshtein 1966)."""
    row = list(range(len(found) + 1))
    for place, word in enumerate(wanted, 1):
        before, row[0] = row[0], place
        for i, other in enumerate(found, 1):
            before, row[i] = row[i], min(row[i] + 1, row[i - 1] + 1, before + (word != other))
    return row[-1]
