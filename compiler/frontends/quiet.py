"""Quiet libraries: what transformers, peft and torch print while they load is no user's concern."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor progress bars of the libraries; their settings are put back."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as library

        level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
        disabled = logging.root.manager.disable
        library.set_verbosity_error()
        library.disable_progress_bar()
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()
