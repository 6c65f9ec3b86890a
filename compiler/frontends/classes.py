"""Which class of transformers a folder's model is: what config.json names, or what the task's Auto class picks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from llmc.compiler.frontends.tasks import OTHER, PRETRAINED, TASKS, Task, tasks_of
from llmc.errors import LlmcError, first_line


def config_of(root: str, stated: Mapping[str, Any]) -> Any:
    """transformers' configuration of a folder; no code of the folder is run.

    Raises:
        LlmcError: transformers has no such model type, or cannot read the file.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    at, model_type = f"{root}/config.json", stated["model_type"]
    if model_type not in CONFIG_MAPPING_NAMES:
        raise _unknown(model_type, CONFIG_MAPPING_NAMES, stated, at)
    try:
        return AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # anything that transformers raises
        raise LlmcError(
            f"transformers cannot read config.json: {first_line(error)}", at=at, found=type(error).__name__
        ) from error


def _unknown(model_type: str, known: Mapping[str, str], stated: Mapping[str, Any], at: str) -> LlmcError:
    import transformers

    if stated.get("auto_map"):
        return LlmcError(
            f"the model type {model_type!r} needs Python code from the folder, which is not run",
            at=at,
            found=f"auto_map: {', '.join(map(str, stated['auto_map']))}"[:120],
            hint="export it where you trust it (torch.onnx.export or torch.export.save), and compile that file",
        )
    close = difflib.get_close_matches(model_type, known, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return LlmcError(
        f"model type {model_type[:80]!r} is not supported",
        at=at,
        found=f"transformers {transformers.__version__}, which has {len(known)} others",
        hint=f"{guess}a newer transformers may know it; a model of your own can be given as .onnx or .pt2",
    )


def class_of(config: Any, architecture: str, task: Task, at: str) -> Any:
    """The class that has the task's head.

    Args:
        config: of `config_of`.
        architecture: the class that config.json names; empty if none.

    Raises:
        LlmcError: there is no such class, or it is of another model type.
    """
    import transformers

    if (task is OTHER or task in tasks_of(architecture)) and not _of_pretraining(architecture, task):
        found = getattr(transformers, architecture, None)
        if getattr(found, "config_class", None) is not type(config) and not _is_mapped(config, architecture):
            raise _no_class(config, architecture, found, at)
        return found
    mapping = getattr(transformers, task.auto)._model_mapping
    found = mapping.get(type(config), None)
    found = found[0] if isinstance(found, (tuple, list)) else found
    if found is None or (found.__name__.endswith(PRETRAINED) and task not in tasks_of(found.__name__)):
        raise _no_head(config, architecture, task, at)
    return found


def _is_mapped(config: Any, architecture: str) -> bool:
    """Whether transformers itself makes a class of another model type for this configuration."""
    import transformers

    made = [
        getattr(transformers, task.auto)._model_mapping.get(type(config), None) for task in TASKS.values()
    ]
    classes = [kind for found in made for kind in (found if isinstance(found, (tuple, list)) else (found,))]
    return architecture in [kind.__name__ for kind in classes if kind is not None]


def _of_pretraining(architecture: str, task: Task) -> bool:
    return architecture.endswith(PRETRAINED) and PRETRAINED in task.suffixes


def _no_class(config: Any, architecture: str, found: Any, at: str) -> LlmcError:
    import transformers

    if getattr(found, "config_class", None) is not None:
        return LlmcError(
            f"{architecture:.80} is not of the model type {config.model_type!r}",
            at=at,
            hint="is config.json the one saved with these weights?",
        )
    trunk = type(config).__name__.removesuffix("Config")
    known = sorted(n for n in dir(transformers) if n.startswith(trunk) and tasks_of(n))
    return LlmcError(
        f"architecture {architecture[:80]!r} is not supported",
        at=at,
        found=f"no such class in transformers {transformers.__version__}",
        hint=f"of {config.model_type} models there are {', '.join(known)}",
    )


def _no_head(config: Any, architecture: str, task: Task, at: str) -> LlmcError:
    """A sentence that names the heads there are."""
    import transformers

    able = [
        t.name
        for t in TASKS.values()
        if not t.reads and type(config) in getattr(transformers, t.auto)._model_mapping
    ]
    return LlmcError(
        f"{config.model_type} models have no head for {task.name}",
        at=at,
        found=architecture or None,
        hint=f"they can do {', '.join(able)}" if able else None,
    )
