"""Race llmc against what a user would pick instead: PyTorch eager and ONNX Runtime, fp32, equal threads.

    python bench/peers.py [--model FOLDER] [--artifact M.llmc] [--threads 1] [--shapes 1x128,8x64] [--json]

All peers live in one process, are checked against PyTorch's outputs first, and run in turns; the ratios are
of paired medians with 95 % bootstrap intervals. Below 1 llmc is the faster. Absolute times depend on the
machine: quote the ratios. Needs the extra `bench` (pip install -e ".[bench]").
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.cli.output import print_table, time_text
from llmc.compiler.demo.race import race, ratio
from llmc.errors import LlmcError

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Peer = Callable[[Arrays], Arrays]

SHAPES = "1x1,1x16,1x128,1x512,8x64,8x128"
TOLERANCE = 5e-4  # of the largest difference between two peers' outputs
OUTPUTS = {"text-classification": "logits", "feature-extraction": "last_hidden_state"}


def load_torch(folder: Path, task: str, attention: str = "sdpa") -> Any:
    """The model in fp32 and evaluation mode; `sdpa` is the library's fastest attention on CPUs."""
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    import torch

    kind = AutoModelForSequenceClassification if task == "text-classification" else AutoModel
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


def torch_peer(model: Any, output: str) -> Peer:
    """PyTorch eager in inference mode; inputs are shared, not copied."""
    import torch

    def call(arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            result = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        return {output: result[output].numpy()}

    return call


def export_onnx(model: Any, output: str, path: Path) -> None:
    """The model as ONNX with dynamic batch and sequence."""
    import torch

    class Positional(torch.nn.Module):
        """transformers models take keywords, the exporter wants positions."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[output]

    ids = torch.arange(5, 19).reshape(2, 7)
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "seq"} for name in names}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Positional().eval(),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=names,
            output_names=[output],
            dynamic_axes={**axes, output: {0: "batch"} if output == "logits" else {0: "batch", 1: "seq"}},
            opset_version=17,
            dynamo=False,
        )


def optimise_onnx(model: Any, source: Path, target: Path) -> dict[str, int]:
    """ONNX Runtime's own fusions for BERT-like models; returns how often each kind of fused node is there."""
    import logging

    from onnxruntime.transformers import optimizer

    logging.disable(logging.WARNING)
    config = model.config
    heads = getattr(config, "num_attention_heads", 0)
    optimised = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=heads, hidden_size=config.hidden_size, opt_level=0
    )
    optimised.save_model_to_file(str(target))
    logging.disable(logging.NOTSET)
    return {name: count for name, count in optimised.get_fused_operator_statistics().items() if count}


def onnx_peer(path: Path, threads: int) -> Peer:
    """ONNX Runtime with all its graph optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Its threads spin between runs by default, which would slow whoever is next in turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    def call(arrays: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, arrays), strict=True))

    return call


def make_onnx_peers(folder: Path, task: str, place: Path, threads: int) -> dict[str, Peer]:
    """ONNX Runtime on the model as exported and as its transformer optimiser leaves it, where that works.

    Exported with attention spelled out: that is the form whose fusions the optimiser knows.
    """
    model, output, folder = load_torch(folder, task, "eager"), OUTPUTS[task], place
    plain, fused = folder / "model.onnx", folder / "fused.onnx"
    export_onnx(model, output, plain)
    peers = {"onnxruntime": onnx_peer(plain, threads)}
    try:
        counts = optimise_onnx(model, plain, fused)
        peers["onnxruntime+fusion"] = onnx_peer(fused, threads)
        print(f"ONNX Runtime's optimiser fused: {counts}", file=sys.stderr)
    except Exception as error:  # whatever it cannot do, the plain export still races
        print(f"ONNX Runtime's optimiser failed: {type(error).__name__}: {error}", file=sys.stderr)
    return peers


def llmc_peer(model: Any) -> Peer:
    """The artifact; inputs and outputs are NumPy arrays as for ONNX Runtime."""

    def call(arrays: Arrays) -> Arrays:
        result: Arrays = model(**arrays)
        return result

    return call


def sample(vocabulary: int, batch: int, seq: int) -> Arrays:
    """Random ids i64[batch, seq] and a mask of ones; equal lengths, so that every peer does the same work."""
    ids = np.random.default_rng(batch * 1000 + seq).integers(5, vocabulary, (batch, seq))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def agree(peers: Mapping[str, Peer], output: str, arrays: Arrays) -> dict[str, float]:
    """Largest difference of each peer to PyTorch.

    Raises:
        LlmcError: a peer computes something else; racing it would mean nothing.
    """
    expected = peers["pytorch"](arrays)[output]
    apart = {name: float(np.abs(call(arrays)[output] - expected).max()) for name, call in peers.items()}
    for name, value in apart.items():
        if not value <= TOLERANCE:
            raise LlmcError(
                f"{name} and pytorch disagree", at=output, found=f"largest difference {value:.2e}"
            )
    return apart


def measure(
    peers: Mapping[str, Peer], output: str, arrays: Arrays, seconds: float, threads: int
) -> dict[str, Any]:
    """Differences, median seconds, and llmc's time over each peer's with its interval."""
    apart = agree(peers, output, arrays)
    times = race({name: partial(call, arrays) for name, call in peers.items()}, seconds, threads)
    batch, seq = arrays["input_ids"].shape
    return {
        "batch": batch,
        "seq": seq,
        "rounds": len(times["pytorch"]),
        "difference": apart,
        "median_seconds": {name: float(np.median(t)) for name, t in times.items()},
        "llmc_over": {
            n: ratio(times["llmc"], t) for n, t in times.items() if n != "llmc" and "llmc" in times
        },
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line for each shape: medians, then llmc's ratio to each peer."""
    names = list(rows[0]["median_seconds"])
    others = list(rows[0]["llmc_over"])
    columns = [
        "batch x seq",
        *(f">{n}" for n in names),
        *(f">llmc / {n}" for n in others),
        ">worst difference",
    ]
    cells = []
    for row in rows:
        medians = [time_text(row["median_seconds"][name]) for name in names]
        ratios = ["{:.2f} ({:.2f} to {:.2f})".format(*row["llmc_over"][name]) for name in others]
        worst = f"{max(row['difference'].values()):.1e}"
        cells.append([f"{row['batch']} x {row['seq']}", *medians, *ratios, worst])
    print_table("", columns, cells)


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """`1x128,8x64` as pairs of batch and sequence."""
    pairs = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape.strip()) for shape in text.split(",")]
    if None in pairs:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1x128,8x64")
    return [(int(pair[1]), int(pair[2])) for pair in pairs if pair]


def default_model() -> Path:
    """The all-MiniLM-L6-v2 folder, fetched once by bench/models.py."""
    from models import fetch

    return fetch("minilm")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="Hugging Face folder (default: all-MiniLM-L6-v2)")
    parser.add_argument("--artifact", type=Path, help="compiled already (default: compile the model now)")
    parser.add_argument("--task", choices=list(OUTPUTS), help="default: by the model's architecture")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", type=parse_shapes, default=parse_shapes(SHAPES))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each shape")
    parser.add_argument(
        "--skip", nargs="*", default=[], help="peers to leave out, such as llmc or onnxruntime"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def make_peers(
    options: argparse.Namespace, folder: Path, task: str, place: Path
) -> tuple[dict[str, Peer], Any]:
    """PyTorch, ONNX Runtime as exported and as fused, and llmc; and PyTorch's model."""
    output, reference = OUTPUTS[task], load_torch(folder, task)
    peers = {"pytorch": torch_peer(reference, output)}
    peers |= make_onnx_peers(folder, task, place, options.threads)
    if "llmc" not in options.skip:
        import llmc

        artifact = options.artifact
        if artifact is None:
            artifact = place / "model.llmc"
            llmc.compile(folder, artifact, task=task)
        peers["llmc"] = llmc_peer(llmc.load(artifact, threads=options.threads))
    return {name: peer for name, peer in peers.items() if name not in options.skip}, reference


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = read_options()
    import torch

    torch.set_num_threads(options.threads)
    folder = options.model or default_model()
    architecture = json.loads((folder / "config.json").read_text()).get("architectures", [""])[0]
    classifies = architecture.endswith("ForSequenceClassification")
    task = options.task or ("text-classification" if classifies else "feature-extraction")
    with tempfile.TemporaryDirectory(prefix="llmc-peers-") as place:
        peers, reference = make_peers(options, folder, task, Path(place))
        rows = []
        for batch, seq in options.shapes:
            arrays = sample(reference.config.vocab_size, batch, seq)
            rows.append(measure(peers, OUTPUTS[task], arrays, options.seconds, options.threads))
            print(f"{batch} x {seq}: {rows[-1]['rounds']} rounds", file=sys.stderr)
    result = {"model": folder.name, "task": task, "threads": options.threads, "shapes": rows}
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{folder.name}, {task}, fp32, {options.threads} thread(s) each")
        show(rows)


if __name__ == "__main__":
    main()
