"""What is known of families that cannot be compiled, or only for short texts: what stands in the way, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmc.errors import LlmcError

_ALL = "models whose attention is whole can be compiled, such as BART, Pegasus, T5 and M2M100"
_GLOBAL = (
    "its attention asks of each text which of its tokens attend to all others, and goes on by the answer"
)
_BLOCKS = "its encoder cuts a source into blocks by Python code, which holds for one number of blocks only"
_REASONS: Mapping[str, tuple[str, str]] = {
    "led": (_GLOBAL, _ALL),
    "longformer": (_GLOBAL, "BERT, RoBERTa and ModernBERT, whose attention is whole, can be compiled"),
    "pegasus_x": (_BLOCKS, _ALL),
    "longt5": (_BLOCKS, _ALL),
    "prophetnet": (
        "its decoder guesses several tokens at each place in streams of their own, by code that holds for some lengths",
        _ALL,
    ),
}


def want_within(model: Any, max_seq: int, at: str) -> None:
    """Refuse what is known to be no one thing, or another thing for long texts.

    Args:
        model: of transformers.

    Raises:
        LlmcError: it is.
    """
    config = model.config
    if config.model_type == "falcon" and getattr(config, "alibi", False):
        raise LlmcError(
            "Falcon with alibi has no one answer: transformers' own ways of attention differ by a tenth of the logits",
            at=at,
            found="alibi true: with eager attention it is in the mask and is added to the scores again, with sdpa once",
            hint="Falcon with rotary positions (alibi false) can be compiled, and BLOOM and MPT, which have alibi",
        )
    if config.model_type == "lxmert":
        raise LlmcError(
            "LXMERT reads what a detector has found in a picture (visual_feats, visual_pos), which llmc does not make",
            at=at,
            hint="export it by torch.export with input_ids, visual_feats and visual_pos, and compile the .pt2 file",
        )
    if any(type(module).__name__ == "NllbMoeSparseMLP" for module in model.modules()):
        raise LlmcError(
            "transformers itself reads only the first two experts of each layer of NLLB-MoE: no numbers are right",
            at=at,
            found="modeling_nllb_moe.py of 5.23 takes the mask of the chosen experts for their numbers",
            hint="NLLB without experts (M2M100), Switch Transformers and mixtures in decoders can be compiled",
        )
    kept = getattr(config, "keep_window_size", None)
    if config.model_type == "doge" and isinstance(kept, int) and kept < max_seq:
        raise LlmcError(
            f"Doge's choice of {kept} keys is not supported for sequences of {max_seq} tokens",
            at=at,
            found=f"keep_window_size {kept}: beyond it a token attends to the {kept} strongest keys only",
            hint=f"compile for shorter ones: --max-seq {kept}",
        )


def explained(error: LlmcError, config: Any, at: str) -> LlmcError:
    """The refusal of a model of a family of which the reason is known, by that reason; any other as it is."""
    if config.model_type not in _REASONS or not error.problem.startswith("torch.export"):
        return error
    reason, hint = _REASONS[config.model_type]
    where = f"{error.problem.removeprefix('torch.export cannot trace the model: ')}"
    found = f"{error.at}: {where}" if error.at else where
    return LlmcError(f"{config.model_type} cannot be compiled: {reason}", at=at, found=found[:300], hint=hint)
