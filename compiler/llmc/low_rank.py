"""LoRA beside weights that stay as compression left them (Hu et al. 2021), written as an adapter of PEFT's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmc.compiler.frontends.adapters import CONFIG, WEIGHTS
from llmc.compiler.frontends.lora import PREFIX
from llmc.errors import LlmcError

SCALE = 2.0  # lora_alpha / r


class LowRank:
    """Two thin matrices beside each product of a model: `x @ a.T @ b.T`, of which b begins as zeros.

    Args:
        rank: columns of the one and rows of the other.
        model: a `torch.nn.Module`, all of whose own weights are frozen.
        names: the parameters that products read; tables and the output head get none.

    Raises:
        LlmcError: none is left.
    """

    def __init__(self, rank: int, model: Any, names: Iterable[str], seed: int) -> None:
        import torch

        head = model.get_output_embeddings()
        model.requires_grad_(False)
        chosen = torch.Generator().manual_seed(seed)
        self.rank, self.modules = rank, dict[str, Any]()
        for path in (name.removesuffix(".weight") for name in names):
            module = model.get_submodule(path)
            if module is not head and not isinstance(module, torch.nn.Embedding):
                self.modules[path] = module
                _added(module, rank, chosen)
        if not self.modules:
            raise LlmcError("--lora finds no products that are compressed, but the output head")

    def write(self, folder: Path, base: Path) -> None:
        """Make it a folder that names its base."""
        from safetensors.torch import save_file

        halves = {
            f"{PREFIX}{path}.lora_{half}.weight": getattr(module, f"lora_{half}").detach().contiguous()
            for path, module in self.modules.items()
            for half in "AB"
        }
        save_file(halves, folder / WEIGHTS[0], {"format": "pt"})
        said = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base.absolute()),
            "r": self.rank,
            "lora_alpha": SCALE * self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": any(map(_turned, self.modules.values())),
            "init_lora_weights": True,
            "inference_mode": True,
            "target_modules": sorted(self.modules),
        }
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _turned(module: Any) -> bool:
    """Whether it stores its weight transposed, as GPT-2's do."""
    return type(module).__name__ == "Conv1D"


def _added(module: Any, rank: int, chosen: Any) -> None:
    import torch

    n, k = module.weight.shape[::-1] if _turned(module) else module.weight.shape
    a = (torch.rand(rank, k, generator=chosen) * 2 - 1) / math.sqrt(k)
    module.lora_A, module.lora_B = torch.nn.Parameter(a), torch.nn.Parameter(torch.zeros(n, rank))
    module.register_forward_hook(_with_adapter)


def _with_adapter(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
    return output + (inputs[0] @ module.lora_A.T @ module.lora_B.T) * SCALE
