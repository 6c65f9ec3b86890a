"""What a model does that writes down speech."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from llmc.runtime.model import Model
    from llmc.runtime.session import Session
    from llmc.runtime.speech import Transcript


class SpeechCalls:
    """The part of `Model` that writes down speech."""

    def transcribe(
        self,
        audio: Any,
        *,
        language: str | None = None,
        task: str | None = None,
        timestamps: bool | None = None,
        sampling_rate: int | None = None,
        resample: bool = False,
        session: Session | None = None,
        **options: Any,
    ) -> Transcript:
        """Write down speech, as transformers does with the likeliest tokens; long sounds in windows of 30 s.

        Args:
            audio: the path of a sound file, or samples as floats [samples] between -1 and 1.
            language: such as "en" or "english"; None: as the model's makers say, else it is found by listening.
            task: "transcribe", or "translate" into English.
            timestamps: make them, so that there are segments; always made of sounds of more than a window.
            sampling_rate, resample: as for `preprocess`.
            session: where; None opens one.
            options: of `generate` those that do not draw tokens: max_new_tokens (of a window), suppress_tokens, ...

        Raises:
            LlmcError: the model does not write down speech, the sound cannot be used, a language or task is unknown.
        """
        from llmc.runtime.speech import transcribe

        model, rate = cast("Model", self), (sampling_rate, resample)
        return transcribe(model, audio, language, task, timestamps, rate, session, options)
