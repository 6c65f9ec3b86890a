"""Gradients made by a copy of what is trained, on a GPU where there is one: accelerate chooses it, and the precision.

Weights, optimizer, masks and checkpoints stay on the processor. A step sends the weights and gets gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from llmc.errors import LlmcError, extras_named
from llmc.training import Training

DEVICES = ("auto", "cpu")


class Replica:
    """A copy of a student, and of what its loss asks.

    Args:
        loss, acting: a training's, no longer shared with it.
        accelerator: accelerate's; None: PyTorch's CPU.
    """

    def __init__(self, loss: Any, acting: Any, accelerator: Any = None) -> None:
        self.loss, self.acting, self.accelerator = loss, acting, accelerator
        if accelerator is not None:
            for model in loss.models:
                model.to(accelerator.device)
        self.trained = [weight for weight in loss.models[0].parameters() if weight.requires_grad]

    def gradients(self, weights: Sequence[Any], rows: Sequence[int]) -> tuple[float, Sequence[Any]]:
        """The mean loss of rows, and the gradient of each weight; None where there is none.

        Args:
            weights: what is trained, as it is now, rounded if it is.
        """
        for own, given in zip(self.trained, weights, strict=True):
            own.data.copy_(given)
            own.grad = None
        if self.accelerator is None:
            with self.acting():
                loss = self.loss(rows)
                loss.backward()
        else:
            with self.acting(), self.accelerator.autocast():
                loss = self.loss(rows)
            self.accelerator.backward(loss)
        return float(loss.detach()), [weight.grad for weight in self.trained]


def accelerator(device: str = DEVICES[0]) -> Any:
    """accelerate's choice of a GPU, in bfloat16 where it has that beside weights in float32; None: there is no GPU.

    Raises:
        LlmcError: accelerate is to be one of several processes, or is not installed.
    """
    import torch

    if device not in DEVICES:
        raise LlmcError(f"no such device: {device}", at="--device", hint=f"use {' or '.join(DEVICES)}")
    if device == "cpu" or not torch.accelerator.is_available():
        return None
    with extras_named():
        from accelerate import Accelerator
    halves = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    made = Accelerator(mixed_precision="bf16" if halves else "no")
    if made.num_processes > 1:
        found = f"{made.num_processes} processes of accelerate's"
        raise LlmcError("recover is one process", found=found, hint="several share its steps by --workers N")
    return None if made.device.type == "cpu" else made


class OnDevice:
    """Gradients by a copy on a GPU."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator, self.device = accelerator, accelerator.device
        self._of: Training | None = None

    def __call__(self, training: Training, rows: Sequence[int]) -> float:
        """As `Training.elsewhere`."""
        if self._of is not training:
            own = copy.deepcopy((training.loss, training.acting))
            self._of, self._replica = training, Replica(*own, self._accelerator)
        weights = list(training.trained.values())
        loss, found = self._replica.gradients([weight.data for weight in weights], rows)
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = None if gradient is None else gradient.to(weight.device, weight.dtype)
        return loss
