"""Whether the sizes in config.json are those of the weights, asked before anybody makes a model or a list of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmc.compiler.frontends.safetensors_file import Tensor
from llmc.errors import LlmcError

MOST_NUMBER = 2**31 - 1
MOST_LAYERS = 1000
MOST_POSITIONS = 1 << 24  # tables of rotary positions may have as many rows; Llama 4 states ten million
MOST_UNUSED = 1 << 20
UNOPENED = 10_000_000  # the most of a size where weights are in a pickle
FEW = 1000  # sizes up to it need no weight: libraries find out what is wrong
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_mel_bins")
MOST_PARTS = 1 << 14  # experts of a layer, bins of a spectrogram; what every config.json of a Doge states
MOST_PIXELS = 4096  # of an image's side
MOST_WIDENING = 16.0
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
DEPTHS = (*LAYERS, "encoder_layers", "decoder_layers", "num_decoder_layers", "num_encoder_layers")
SIZES = (
    *("num_labels", "vocab_size", "hidden_size", "intermediate_size", "embedding_size"),
    "type_vocab_size",
    *("dim", "hidden_dim", "n_embd", "n_inner", "position_buckets", "max_relative_positions"),
)

Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def number(config: Config, key: str, at: str, default: int) -> int:
    """A positive number of config.json.

    Raises:
        LlmcError: it is something else.
    """
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LlmcError(f"{key} is not a positive number", at=at, found=repr(value)[:60])
    if value > MOST_NUMBER:
        raise LlmcError(f"{key} is larger than {MOST_NUMBER}", at=at, hint="is config.json damaged?")
    return value


def want_of(config: Config, tensors: Tensors | None, at: str) -> None:
    """Refuse layers that are none or without end, and sizes that no weight has.

    Raises:
        LlmcError: config.json is not of these weights.
    """
    for key in LAYERS:
        if key in config and not isinstance(config[key], dict):  # LXMERT's says how many of each kind
            number(config, key, at, 1)
    _want_at_most(config, (*DEPTHS, "depths"), MOST_LAYERS, at)
    _want_at_most(config, COUNTS, MOST_PARTS, at)
    if config.get("num_labels") is not None:
        number(config, "num_labels", at, 2)
    most = _largest(tensors)
    for key in SIZES:
        unused = (
            key == "intermediate_size" and "moe_intermediate_size" in config
        )  # where every layer has experts
        allowed = max(most, MOST_UNUSED if unused else FEW)
        if type(config.get(key)) is int and config[key] > allowed:
            raise _other(key, config[key], most, at)
    _want_pictures(config, at)


def _want_at_most(config: Config, keys: Iterable[str], most: int, at: str) -> None:
    """Refuse larger numbers under any of the keys, in lists and in the configurations of a model's parts too."""
    parts = [config]
    for part in parts:  # grows while it is read
        parts += [value for value in part.values() if isinstance(value, dict)]
    for key, stated in [(key, part[key]) for key in keys for part in parts if key in part]:
        numbers = [
            n for n in (stated if isinstance(stated, list) else [stated]) if isinstance(n, int | float)
        ]
        if max(numbers, default=0) > most:
            raise LlmcError(
                f"{key} is larger than {most}", at=at, found=repr(stated)[:60], hint="is config.json damaged?"
            )


def _want_pictures(config: Config, at: str) -> None:
    """Refuse images and widths that no memory holds; that they are sizes at all is asked later."""
    _want_at_most(config, ("image_size", "num_channels"), MOST_PIXELS, at)
    widening = config.get("depth_multiplier")
    if isinstance(widening, int | float) and not 0 < widening <= MOST_WIDENING:
        raise LlmcError(f"depth_multiplier is not within 0 to {MOST_WIDENING:g}", at=at)


# What config.json calls the number of positions, the usual name first.
POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"),
    *("max_source_positions", "encoder_max_position_embeddings"),
)
# Model types whose positions start after a padding index, what it is if config.json does not say, and whether it may.
_AFTER_PADDING: Mapping[str, tuple[int, bool]] = {
    **dict.fromkeys(
        ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm"), (1, True)
    ),
    **dict.fromkeys(
        ("data2vec-text", "longformer", "layoutlmv3", "markuplm", "lilt", "xmod", "luke"), (1, True)
    ),
    **dict.fromkeys(("ibert", "esm", "mluke"), (1, True)),
    "mpnet": (1, False),
}


def reserved(config: Config) -> int:
    """How many position embeddings no token uses."""
    model_type = config.get("model_type")
    usual, stated = _AFTER_PADDING.get(model_type if isinstance(model_type, str) else "", (-1, False))
    found = config.get("pad_token_id", usual) if stated else usual
    return max(found + 1, 0) if type(found) is int else usual + 1


def positions(config: Config, tensors: Tensors | None, at: str) -> int:
    """The most tokens that a row may have.

    Raises:
        LlmcError: there is none, or more than any table has.
    """
    pair = [config.get(name) for name in ("encoder", "decoder")]
    if all(isinstance(part, dict) for part in pair) and not _stated(config):
        return positions(next(filter(_stated, pair), {}), tensors, at)  # type: ignore[arg-type]
    text = config.get("text_config")
    where = text if isinstance(text, dict) else config
    key = next(iter(_stated(where)), POSITIONS[0])
    count, unused = number(where, key, at, 512), reserved(config)
    most = max(_largest(tensors), MOST_POSITIONS)
    if count > most:
        raise _other(key, count, most, at)
    if count <= unused:
        raise LlmcError(
            "no position is left for a token: they start after pad_token_id",
            at=at,
            found=f"{key} {count}, pad_token_id {unused - 1}"[:80],
        )
    return count - unused


def _stated(config: Any) -> list[str]:
    """The names under which the number of positions is said."""
    return [key for key in POSITIONS if config.get(key) is not None]


def _largest(tensors: Tensors | None) -> int:
    """The largest size of any weight."""
    if tensors is None:
        return UNOPENED
    return max((size for tensor in tensors.values() for size in tensor.shape), default=1)


def _other(key: str, value: int, most: int, at: str) -> LlmcError:
    return LlmcError(
        f"{key} is larger than any weight",
        at=at,
        found=f"the largest is {most}" if value > MOST_NUMBER else f"{value}, the largest is {most}",
        hint="config.json and weights are of different models",
    )
