"""Which class of transformers a checkpoint is of, told by the names of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.tasks import architecture_of

Shapes = Mapping[str, tuple[int, ...] | None]
# the same weights as another class, and asked for by config.json where they are meant
_CAUSAL = ("LMHeadModel", "ForCausalLM")
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def expected(root: Path, config: Mapping[str, Any]) -> tuple[set[str], str]:
    """Names of the weights of the class in config.json, and its prefix; none if it cannot be made."""
    import transformers

    name = architecture_of(config) or "AutoModel"
    kind = getattr(transformers, name, None)
    made = None if kind is None else _made(kind, root)
    return (set(), "") if made is None else (set(made.state_dict()), made.base_model_prefix)


def class_of(root: Path, shapes: Shapes) -> str:
    """The one class that has these weights; empty if there is none, or several."""
    own = {_new(name): shape for name, shape in shapes.items() if not name.endswith("position_ids")}
    found = [kind.__name__ for kind in _candidates(root) if _fits(kind, root, own)]
    masked = [name for name in found if not name.endswith(_CAUSAL)]
    chosen = masked if len(masked) == 1 else found
    return chosen[0] if len(chosen) == 1 else ""


def _new(name: str) -> str:
    for old, new in _OLD.items():
        name = name.replace(old, new)
    return name


def _candidates(root: Path) -> list[Any]:
    """All models of the configuration's family."""
    from transformers import AutoConfig, PreTrainedModel

    try:
        config = AutoConfig.from_pretrained(str(root), local_files_only=True, trust_remote_code=False)
        modules = type(config).__module__.replace(".configuration_", ".modeling_")
        module = import_module(modules)
    except Exception:  # the import says what is wrong with the folder
        return []
    kinds: list[Any] = [getattr(module, name, None) for name in getattr(module, "__all__", ())]
    models = [k for k in kinds if isinstance(k, type) and issubclass(k, PreTrainedModel)]
    return [k for k in models if getattr(k, "config_class", None) is type(config)]


def _made(kind: Any, root: Path) -> Any:
    """A model without numbers; None if it cannot be made."""
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(root), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return (getattr(kind, "from_config", None) or kind._from_config)(config)
    except Exception:  # anything that transformers and torch raise for settings that are none
        return None


def _fits(kind: Any, root: Path, own: Shapes) -> bool:
    """Whether the weights are all of the class's, tied ones left out or not."""
    model = _made(kind, root)
    if model is None:
        return False
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if set(own) - set(wanted) or set(wanted) - set(own) - tied:
        return False
    return all(shape is None or shape == wanted[name] for name, shape in own.items())
