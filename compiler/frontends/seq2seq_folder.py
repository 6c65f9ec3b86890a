"""A folder with an encoder-decoder -> its functions, and what the folder says of generating with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmc.compiler.frontends import forward, generation_config
from llmc.compiler.frontends.folder import Summary
from llmc.compiler.frontends.inputs import FEATURES, IMAGE, TARGET, TEXT, WAVE, Input, inputs_of
from llmc.compiler.frontends.program import asked
from llmc.errors import LlmcError

if TYPE_CHECKING:
    from llmc.compiler.graph import Graph

TASKS = ("text2text-generation", "automatic-speech-recognition", "image-text-to-text")


def is_one(model: Any, task: str) -> bool:
    """Whether a model reads a source and makes a text of it, by what its class says and takes."""
    import inspect

    takes = inspect.signature(model.forward).parameters
    both = {TARGET, "encoder_outputs", "past_key_values"} <= takes.keys()
    return task in TASKS and both and bool(getattr(model.config, "is_encoder_decoder", False))


def load(summary: Summary, model: Any, max_seq: int) -> tuple[Mapping[str, Graph], str]:
    """The functions `encode` and `step`; none, and why, where the model has to do without states.

    Raises:
        LlmcError: the model cannot be run.
    """
    from llmc.compiler.frontends import seq2seq
    from llmc.compiler.frontends.implementations import EAGER, set_way
    from llmc.compiler.frontends.report import UnsupportedError
    from llmc.compiler.frontends.seq2seq_parts import masked, parts_of

    at = str(summary.root / "config.json")
    forward.in_one_piece(model)
    masked(model)
    try:
        source, bounds = _source(model, summary, max_seq)
        parts = parts_of(model, source, bounds, start_of(summary, model))
        return seq2seq.functions(
            model, parts, at, lambda values, ids: _whole(model, {source.name: values, TARGET: ids}, at)
        ), ""
    except (UnsupportedError, LlmcError) as error:
        set_way(model, EAGER)
        return {}, error.problem if isinstance(error, LlmcError) else error.reason


def _whole(model: Any, given: Mapping[str, Any], at: str) -> Any:
    """All logits of a text, by transformers and without a cache."""
    return asked(lambda: model(**given, use_cache=False, return_dict=True).logits.numpy(), at)


def _source(model: Any, summary: Summary, max_seq: int) -> tuple[Input, dict[str, tuple[int, int]]]:
    """What the encoder reads of one source, and the bounds of source and text.

    Raises:
        UnsupportedError: it reads something that `encode` cannot be given.
    """
    from dataclasses import replace

    from llmc.compiler.frontends.report import UnsupportedError
    from llmc.compiler.frontends.seq2seq_parts import SOURCE
    from llmc.compiler.frontends.stepping import SEQ

    inputs = inputs_of(model, summary.root, 1, max_seq)
    read = [given for given in inputs.given if given.name in (TEXT, FEATURES, IMAGE, WAVE)]
    if len(read) != 1:
        raise UnsupportedError(
            f"{type(model).__name__} reads neither a text, nor an image, nor sound alone", ""
        )
    names: dict[str | int, str | int] = {"batch": 1, "seq": SOURCE}
    axes = tuple(names.get(axis, axis) for axis in read[0].axes)
    open_axes = [axis for axis in axes if isinstance(axis, str)]
    target = inputs.bounds["target"][1]
    bounds = {SEQ: (1, target if max_seq == summary.max_positions else min(target, max_seq))}
    bounds |= {axis: inputs.bounds["seq" if axis == SOURCE else axis] for axis in open_axes}
    return replace(read[0], axes=axes), bounds


def start_of(summary: Summary, model: Any) -> int:
    """The token that the decoder begins with.

    Raises:
        UnsupportedError: neither the folder nor the model says.
    """
    stated, at = generation_config.stated_by(summary.root, summary.config), str(summary.root)
    said = generation_config.Tokens(stated, summary.config, model.get_output_embeddings().weight.shape[0], at)
    if (start := said.start()) is None:
        from llmc.compiler.frontends.report import UnsupportedError

        raise UnsupportedError("no decoder_start_token_id is given", "")
    return start


def generates(summary: Summary, functions: Mapping[str, Graph]) -> dict[str, Any]:
    """What an artifact needs to know of generating."""
    from llmc.compiler.frontends import seq2seq

    (node,) = functions[seq2seq.ENCODE].inputs
    source = node.attributes["name"]
    encoder: dict[str, Any] = {"function": seq2seq.ENCODE, "source": source}
    if "donut" in str(
        summary.config.get("encoder")
    ):  # its tasks have tokens of their own, which transformers knows
        encoder["bare"] = 1
    in_windows = source == FEATURES and all(isinstance(size, int) for size in node.shape)
    return generation_config.of_functions(
        summary.root, summary.config, functions, encoder=encoder, speech=in_windows
    )
