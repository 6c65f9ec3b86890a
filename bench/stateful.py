"""Stateful OpenVINO models of a causal language model, for bench/decoding.py to race.

    python bench/stateful.py MODEL -o PLACE [--weights fp32 fp16 int8 int4] [--set INFERENCE_PRECISION_HINT=bf16]

Writes PLACE-fp32.ov and so on. MODEL is a Hugging Face folder or a GGUF file, whose weights become fp32 first, or what
this wrote in fp32. transformers' own exporter makes the model (`transformers.exporters`), with any number of tokens in
a call and the cache inside; NNCF compresses its weights: int8 and int4 as it does by default, int4 in groups of 64. As
llmc's artifacts do, it gives the logits of the last token alone. Computed is in fp32, unless `--set` says otherwise:
OpenVINO's own choice on CPUs with AMX is bf16. Settings go into settings.json beside the model.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from decoders import OPENVINO, SETTINGS

SAMPLE = 16  # tokens that it is traced with
WEIGHTS = ("fp32", "fp16", "int8", "int4")


def loaded(path: Path) -> Any:
    """The model in fp32, whose head is given the last token's row alone."""
    import torch
    import transformers

    from llmc.compiler.frontends import gguf_file

    class LastToken(torch.nn.Module):
        def __init__(self, head: torch.nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, rows: torch.Tensor) -> Any:
            return self.head(rows[:, -1:])

    with tempfile.TemporaryDirectory() as place:
        if path.suffix == gguf_file.SUFFIX:
            gguf_file.write(path, Path(place), beside=False)
            path = Path(place)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.set_output_embeddings(LastToken(model.get_output_embeddings()))
    return model.eval()


def exported(path: Path) -> Any:
    """The model in fp32, by transformers' exporter."""
    import torch
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter
    from transformers.exporters.utils import decompose_for_generation

    ids = torch.arange(5, 5 + 2 * SAMPLE).view(2, SAMPLE)
    sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model, inputs = decompose_for_generation(loaded(path), sample, multi_token_decode=True)["decode"]
    return OpenVINOExporter().export(model, inputs, OpenVINOConfig(dynamic=True)).program


def compressed(model: Any, weights: str) -> Any:
    """A copy of the model with such weights."""
    import nncf
    from openvino._offline_transformations import compress_model_transformation

    model = model.clone()
    if weights == "fp16":
        compress_model_transformation(model)
    if not weights.startswith("int"):
        return model
    nncf.set_log_level(logging.ERROR)
    if weights == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64)


def main() -> None:
    import openvino

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", required=True, metavar="PLACE")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=["fp32", "int8"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    before = asked.model / OPENVINO
    model = openvino.Core().read_model(str(before)) if before.exists() else exported(asked.model)
    settings = {"INFERENCE_PRECISION_HINT": "f32"} | dict(one.split("=", 1) for one in asked.set)
    for weights in asked.weights:
        folder = Path(f"{asked.output}-{weights}.ov")
        folder.mkdir(parents=True)
        openvino.save_model(compressed(model, weights), str(folder / OPENVINO), compress_to_fp16=False)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
