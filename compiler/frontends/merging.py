"""A PEFT adapter and its base made one by the library `peft`, and held to what the two answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.adapters import CONFIG, Adapter
from llmc.compiler.frontends.json_file import read_object
from llmc.compiler.frontends.tasks import architecture_of
from llmc.errors import LlmcError, extras_named, first_line

PREFIX = "base_model.model."  # of every name in an adapter's file
# task_type of adapter_config.json -> transformers' class that the adapter was trained on
CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


def merged(base: Path, adapter: Adapter) -> Any:
    """The base model in f32 with the adapter in its weights, of the class that the adapter was trained on.

    Args:
        base: a plain folder of transformers.

    Raises:
        LlmcError: peft is not installed, or the two do not fit each other.
    """

    with extras_named():
        import peft

    _want_known(adapter, peft)
    weights = _weights(adapter, peft)
    failure: LlmcError | None = None
    for kind in _classes(base, adapter):
        try:
            return _merged(base, adapter, kind, weights, peft)
        except LlmcError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _want_known(adapter: Adapter, peft: Any) -> None:
    """Refuse what the installed peft would leave out."""
    at, config = str(adapter.path / CONFIG), read_object(adapter.path / CONFIG)
    kinds = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    if adapter.kind not in {str(getattr(k, "value", k)) for k in kinds}:
        hint = "is it of a newer version? pip install -U peft"
        raise LlmcError(
            f"peft {peft.__version__} knows no adapter of the type {adapter.kind}", at=at, hint=hint
        )
    known = set(kinds[peft.PeftType(adapter.kind)].__dataclass_fields__)
    for key, value in config.items():
        if key not in known and value not in (None, False, {}, [], ""):
            raise LlmcError(
                f"peft {peft.__version__} does not know the setting {key}",
                at=at,
                found=f"{value!r:.60}",
                hint="pip install -U peft; or remove it if the answers do not depend on it",
            )


def _weights(adapter: Adapter, peft: Any) -> Mapping[str, Any]:
    from peft.utils import load_peft_weights

    try:
        found: Mapping[str, Any] = load_peft_weights(str(adapter.path), device="cpu")
    except Exception as error:  # anything that safetensors and pickle raise
        raise _failed("read the adapter's weights", adapter, error) from None
    return found


def _failed(what: str, adapter: Adapter, error: Exception) -> LlmcError:

    found = type(error).__name__
    return LlmcError(f"peft cannot {what}: {first_line(error)}", at=str(adapter.path), found=found)


def _classes(base: Path, adapter: Adapter) -> list[Any]:
    """The class that was trained; without a task_type that of the base, or the model without a head."""
    import transformers

    if adapter.task in CLASSES:
        return [getattr(transformers, CLASSES[adapter.task])]
    known = getattr(transformers, architecture_of(read_object(base / "config.json")), None)
    return [*([known] if hasattr(known, "from_pretrained") else []), transformers.AutoModel]


def _merged(base: Path, adapter: Adapter, kind: Any, weights: Mapping[str, Any], peft: Any) -> Any:
    model, untrained = _base_model(base, adapter, kind, weights)
    _resize(model, weights)
    ids = _sample(model)
    try:
        tuned = peft.PeftModel.from_pretrained(model, str(adapter.path), torch_device="cpu").eval()
        _want_fitting(tuned, adapter, weights, base)
        before = _answer(tuned, ids)
        merge = getattr(tuned, "merge_and_unload", None)
        if merge is None:
            raise LlmcError(f"an adapter of the type {adapter.kind} cannot be merged", at=str(adapter.path))
        result = merge().eval()
    except LlmcError:
        raise
    except KeyError as error:  # of a module that is saved whole, such as a head
        raise _unfit(f"no weights for {error.args[0]}", adapter, kind.__name__, base) from None
    except Exception as error:  # anything that peft and torch raise
        raise _failed("merge the adapter into its base", adapter, error) from None
    _want_plain(result, adapter)
    _want_trained(untrained, adapter, weights)
    _want_same(before, _answer(result, ids), adapter)
    return result


def _base_model(base: Path, adapter: Adapter, kind: Any, weights: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The base as the class, and the weights that it does not have itself: the adapter has to bring them."""
    import torch

    count = _labels(base, kind, weights)
    try:
        model, info = kind.from_pretrained(
            str(base),
            local_files_only=True,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_options(kind, count),
        )
    except Exception as error:  # anything transformers and torch raise for a folder they cannot read
        problem = f"transformers cannot load the base model: {first_line(error)}"
        raise LlmcError(problem, at=str(base), found=type(error).__name__) from None
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    return model.eval(), sorted({*info["missing_keys"], *mismatched})


def _options(kind: Any, labels: int | None) -> dict[str, Any]:
    """Of an Auto class also that no code of the folder is run; a class itself runs none."""
    automatic = {"trust_remote_code": False} if kind.__name__.startswith("Auto") else {}
    return automatic if labels is None else {**automatic, "num_labels": labels}


_SENTINEL = 997  # a number of labels that no other size is


def _labels(base: Path, kind: Any, weights: Mapping[str, Any]) -> int | None:
    """How many labels a head in the adapter has; adapters keep no configuration of the model."""
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(base), local_files_only=True, trust_remote_code=False, num_labels=_SENTINEL
        )
        with torch.device("meta"):
            make = getattr(kind, "from_config", None) or kind._from_config
            shapes = {name: tuple(p.shape) for name, p in make(config).named_parameters()}
    except Exception:  # the load says what is wrong
        return None
    heads = [name for name, shape in shapes.items() if shape[:1] == (_SENTINEL,)]
    return next((len(weights[PREFIX + n]) for n in heads if PREFIX + n in weights), None)


def _resize(model: Any, weights: Mapping[str, Any]) -> None:
    """As many words as the table has that the adapter brings, if it brings one."""
    table = model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    name = f"{PREFIX}{names.get(id(table))}"
    found = weights.get(f"{name}.weight", weights.get(f"{name}.base_layer.weight"))
    if found is not None and len(found) != len(table.weight):
        model.resize_token_embeddings(len(found), mean_resizing=False)


def _sample(model: Any) -> Any:
    """Token ids i64 [1, 5] to hold a merge to, None for models that read something else."""
    import torch

    words = getattr(model.config, "vocab_size", None)
    return torch.arange(5)[None] % words if isinstance(words, int) and words > 0 else None


def _answer(model: Any, ids: Any) -> Any:
    import torch

    if ids is None:
        return None
    try:
        with torch.no_grad():
            return model(input_ids=ids)[0].double()
    except Exception:  # a model that wants more than tokens
        return None


def _want_plain(model: Any, adapter: Adapter) -> None:
    """Refuse a merge that left layers of the adapter in the model."""
    left = sorted({type(m).__name__ for m in model.modules() if type(m).__module__.startswith("peft.")})
    if left:
        raise LlmcError(
            f"peft cannot merge all of an adapter of the type {adapter.kind}",
            at=str(adapter.path),
            found=f"{_some(left)} left in the model",
            hint="train LoRA, IA3 or another kind that merges",
        )


def _want_same(before: Any, after: Any, adapter: Adapter) -> None:
    """Refuse an adapter whose answers are not its merged weights'."""
    if before is None or after is None:
        return
    scale = max(float(before.abs().max()), 1e-30)
    apart = float((before - after).abs().max()) / scale
    if math.isnan(apart) or apart > 1e-3:
        raise LlmcError(
            "the merged weights do not answer as base and adapter do",
            at=str(adapter.path),
            found=f"answers {apart:.1e} of their scale apart",
            hint=f"adapters of the type {adapter.kind} with these settings cannot be merged",
        )


def _want_fitting(tuned: Any, adapter: Adapter, weights: Mapping[str, Any], base: Path) -> None:
    """Refuse weights that peft left out, and places that it filled itself."""
    from peft import get_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    # tables of words, which peft saves too where their size was changed
    tables = set(get_peft_model_state_dict(tuned, save_embedding_layers=True))
    unused = sorted(set(weights) - wanted - tables)
    if unused or (missing := sorted(wanted - set(weights))):
        what = f"weights that nothing uses: {_some(unused)}" if unused else f"no weights for {_some(missing)}"
        raise _unfit(what, adapter, type(tuned.get_base_model()).__name__, base)


def _unfit(what: str, adapter: Adapter, model: str, base: Path) -> LlmcError:
    return LlmcError(
        f"the adapter does not fit its base: it has {what}",
        at=str(adapter.path),
        found=f"{model} of {base.name}",
        hint="is this the base it was trained on? --base DIR names another",
    )


def _want_trained(untrained: Sequence[str], adapter: Adapter, weights: Mapping[str, Any]) -> None:
    """Refuse a head that neither of the two holds."""
    if left := [name for name in untrained if PREFIX + name not in weights]:
        raise LlmcError(
            f"neither the adapter nor its base has weights for {_some(left)}",
            at=str(adapter.path),
            hint="was the head saved with the adapter (modules_to_save)? give the base that has it by --base DIR",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
