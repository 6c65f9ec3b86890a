"""What a backend is: everything that a compile asks about one kind of machine, behind one interface.

A backend lies in a folder of its own here, or in another package: a `Target` names it, or holds it
(`backends.py`). Nobody asks what kind of machine it is for, only what it can do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from llmc.compiler import extensions
from llmc.compiler.calls import Call, Region
from llmc.compiler.dims import Bounds
from llmc.compiler.graph import Graph
from llmc.compiler.ops.storage import stored_ops
from llmc.compiler.program import Variant
from llmc.errors import LlmcError
from llmc.targets.lowering import Lowerings, layered, lower, registered
from llmc.targets.store import Store
from llmc.targets.target import Target

Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Code:
    """What a backend makes of kernels.

    Args:
        objects: name -> object file that module.so is linked with. It defines `SYMBOL_VARIANT` of each kernel.
        data: symbol -> bytes that module.so holds, read-only, such as code for a device.
        sources: file name -> text, for whoever wants to read what was compiled (`--keep`).
    """

    objects: Mapping[str, bytes] = field(default_factory=dict)
    data: Mapping[str, bytes] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


class Backend(ABC):
    """Kernels for one kind of machine, and what surrounds them.

    The attributes say what it can do:

    - `name`: as `Target.backend` and `llmc.targets.lowering.register` have it.
    - `forms`: those of `--emit` it serves.
    - `quantisations`: the modes of `--quant` whose ops it has kernels for; `integer_attention`: whether attention
      may be one of these ops.
    - `integer_rows`: the passes that round the rows of products with stored weights to integers (`int16`,
      `int8-blocks`) for which it has kernels; without them these products have float rows.
    - `zero_points`: whether it has integer kernels for levels around a zero point, as quantised files have them.
    - `group_zeros`: whether its products read zero points of groups as they are stored.
    - `halves`: whether products with half-precision weights round their other operand to half too.
    - `ragged`: whether it has kernels for rows of tokens without padding (passes/rows/ragged.py).
    - `channels_last`: whether it likes images with the channels of a pixel side by side (passes/layout).
    - `winograd`: whether it has kernels for convolutions by tiles of 2x2 pixels (passes/layout/winograd.py).
    - `decodes`: ops of stored weights (compiler/ops/storage.py) that its products read as they are; `unpack`
      makes plain weights of the others.
    - `device`: the `llmc_device` (runtime/c) that launches its kernels by number, in memory of its own; empty where
      the program calls them.
    - `emitter`: whose code of extensions for values in registers its chains use (`Extension.scalars`).
    - `runtime_sources`: C files that module.so needs besides the runtime's own: names in runtime/c, or paths.
    - `libraries`: linker flags likewise.
    """

    name: ClassVar[str]
    forms: ClassVar[Sequence[str]] = ("shared",)
    quantisations: ClassVar[frozenset[str]] = frozenset()
    integer_attention: ClassVar[bool] = False
    integer_rows: ClassVar[frozenset[str]] = frozenset()
    zero_points: ClassVar[bool] = False
    group_zeros: ClassVar[bool] = False
    halves: ClassVar[bool] = False
    ragged: ClassVar[bool] = False
    channels_last: ClassVar[bool] = False
    winograd: ClassVar[bool] = False
    device: ClassVar[str] = ""
    emitter: ClassVar[str] = "cpu"
    runtime_sources: ClassVar[Sequence[str | Path]] = ()
    libraries: ClassVar[Sequence[str]] = ()

    @property
    def decodes(self) -> frozenset[str]:
        return frozenset()

    # --- what it is asked in any case

    @abstractmethod
    def variants(self, target: Target) -> Sequence[Variant]:
        """The kinds of code in an artifact, best first: the first that the machine can run is used."""

    @abstractmethod
    def lowerings(self) -> Lowerings:
        """Op -> what makes the call for a node of it; it may decline, or raise for dtypes it does not do."""

    @abstractmethod
    def compile(self, calls: Sequence[Call], target: Target, kept: Store) -> Code:
        """The code of the calls' kernels for each variant.

        Args:
            kept: what earlier compiles made, by content.

        Raises:
            LlmcError: a compiler is missing or fails.
        """

    # --- what most have no answer of their own to

    def runs_here(self, target: Target) -> Sequence[str]:
        """Names of the variants that this machine can run, for the self-test of a finished artifact."""
        return ()

    def matmuls(self, target: Target) -> Sequence[str]:
        """The ways of `--matmul` that pay on `target`."""
        return ("fma",)

    def passes(self, target: Target) -> Mapping[str, str]:
        """Place in the pipeline (compiler/places.py) -> text of the passes that `target` needs there.

        By default weights in storage formats that the products do not decode become plain.
        """
        if not stored_ops() - self.decodes:
            return {}
        kept = ",".join(f'"{op}"' for op in sorted(self.decodes))
        return {"compress": f"unpack{{keep=[{kept}]}}" if kept else "unpack"}

    def lower(self, graph: Graph, first: Lowerings | None = None) -> tuple[Call | Region, ...]:
        """The calls that compute `graph`: by the lowerings of `first`, then registered ones, then its own.

        Raises:
            LlmcError: nodes have no kernel; all of them are listed.
        """
        own = self.lowerings()
        outside = dict.fromkeys(extensions.scalars(self.emitter), own["chain"]) if "chain" in own else {}
        return lower(graph, layered(first or {}, registered(self.name), own, outside), self.name)

    # --- tuning (docs/tuning.md)

    def check_tuning(self, target: Target) -> None:
        """Raises LlmcError unless schedules can be searched for on this machine."""
        raise LlmcError(
            f"there is nothing to tune: the kernels of {self.name} have one schedule",
            at=f"--target {target.name}",
            hint="leave --tune out",
        )

    def tune(
        self,
        calls: Sequence[Call],
        dims: Mapping[str, Bounds],
        target: Target,
        kept: Store,
        seconds: float,
        tell: Tell,
    ) -> Mapping[Any, Any]:
        """What is known of schedules after `seconds` of searching; `tuned` takes it."""
        return {}

    def tuned(self, found: Mapping[Any, Any]) -> Lowerings:
        """The lowerings that use what `tune` found: they come before all others, and decline what is not tuned."""
        return {}

    def products(self, calls: Sequence[Call], found: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """For the manifest: the schedules of products, and what tuning measured."""
        return []

    def choices(self, schedule: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a schedule as `products` has it, what is worth telling: what is not as without tuning."""
        return schedule
