"""Folders and files made to hang, to exhaust memory or to reach elsewhere: a sentence each, and nothing outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from llmc.compiler.frontends.folder import inspect
from llmc.errors import LlmcError

DEEP = "[" * 100_000 + "]" * 100_000
Damage = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Whatever hangs is a failure, and the next test runs."""

    def fail(number: int, frame: Any) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def copied(demo: Path, place: Path) -> Path:
    """The demo's model in a folder of its own below `place`."""
    folder = place / "home" / "model"
    folder.mkdir(parents=True)
    for file in demo.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
        elif file.name == "model.safetensors":
            (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture
def model(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the demo's model."""
    return copied(demo_folder, tmp_path)


def edit(**changes: Any) -> Damage:
    """Entries of config.json, as JSON texts where Python has no such number."""

    def damage(folder: Path) -> None:
        file = folder / "config.json"
        config = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    return damage


def text(name: str, content: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(content)

    return damage


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def link(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return damage


def sparse(name: str, size: int = 20 << 30) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return damage


def modules(*paths: Any) -> Damage:
    kinds = ("Transformer", "Pooling", "Dense")
    entries = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in zip(paths, kinds, strict=False)
    ]
    return text("modules.json", json.dumps(entries))


def weights(header: bytes, length: int | None = None) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        size = len(header) if length is None else length
        (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header)

    return damage


def shards(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        places = {f"w{i}": name for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    return damage


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


IMAGES = {"model_type": "mobilenet_v2", "architectures": ["MobileNetV2ForImageClassification"]}
FOLDERS: dict[str, tuple[Damage, str]] = {
    "a config nested deep": (text("config.json", DEEP), "config.json is nested too deeply"),
    "a config nested less deep": (
        text("config.json", '{"a": ' + "[" * 200 + "]" * 200 + "}"),
        "config.json is nested too deeply",
    ),
    "a tokenizer nested deep": (text("tokenizer.json", DEEP), "tokenizer.json is nested too deeply"),
    "settings nested deep": (text("tokenizer_config.json", DEEP), "tokenizer_config.json is nested too"),
    "modules nested deep": (text("modules.json", DEEP), "modules.json is nested too deeply"),
    "a header nested deep": (weights(DEEP.encode()), "model.safetensors is corrupt"),
    "a header without end": (weights(b"{}", 2**63), "model.safetensors is corrupt"),
    "a number of 5,000 digits": (text("config.json", '{"a": ' + "9" * 5000 + "}"), "is not valid JSON"),
    "a label of 5,000 digits": (edit(id2label={"9" * 5000: "a"}), "a key of id2label is larger"),
    "a label that is half a character": (edit(id2label={"0": "\ud83d"}), "a label is not valid Unicode"),
    "10^9 labels": (edit(num_labels=10**9, id2label=...), "num_labels is larger than any weight"),
    "-1 labels": (edit(num_labels=-1, id2label=...), "num_labels is not a positive number"),
    "10^9 words": (edit(vocab_size=10**9), "vocab_size is larger than any weight"),
    "10^400 words": (edit(vocab_size=10**400), "vocab_size is larger than any weight"),
    "10^9 layers": (edit(num_hidden_layers=10**9), "num_hidden_layers is larger than 1000"),
    "10^30 positions": (edit(max_position_embeddings=10**30), "max_position_embeddings is larger than"),
    "10^9 positions": (edit(max_position_embeddings=10**9), "max_position_embeddings is larger than"),
    "a padding beyond all words": (edit(pad_token_id=2**40), "pad_token_id is no token's"),
    "images of 10^9 columns": (edit(**IMAGES, image_size=10**9), "image_size is larger than 4096"),
    "a network 10^6 times as wide": (edit(**IMAGES, depth_multiplier=1e6), "depth_multiplier is not within"),
    "a pipe as weights": (pipe("model.safetensors"), "model.safetensors is not a file"),
    "a pipe as config": (pipe("config.json"), "no config.json"),
    "a pipe as tokenizer": (pipe("tokenizer.json"), "tokenizer.json is not a file"),
    "a pipe that a library opens": (pipe("generation_config.json"), "generation_config.json is not a file"),
    "a pipe as a shard": (both(shards("pipe"), pipe("pipe")), "pipe is not a file"),
    "a shard elsewhere": (shards("../../secret"), "weight file ../../secret is missing"),
    "a config without end": (link("config.json", "/dev/zero"), "no config.json"),
    "20 GB of config": (sparse("config.json"), "config.json is too large"),
    "20 GB of tokenizer": (sparse("tokenizer.json"), "tokenizer.json is too large"),
    "modules in a folder above": (modules("../../.."), "names a folder that is not in the model's"),
    "pooling in a folder above": (modules("", "../other"), "names a folder that is not in the model's"),
    "modules in the root": (modules("/etc"), "names a folder that is not in the model's"),
    "modules in a list": (modules(["x"]), "names a folder that is not in the model's"),
    "modules behind a link": (
        both(link("elsewhere", "/etc"), modules("elsewhere")),
        "names a folder that is not in the model's",
    ),
}


def refused(result: Any, words: str) -> None:
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert words in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert len(result.err) < 1000


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(case: str, model: Path, cli: Any) -> None:
    damage, words = FOLDERS[case]
    damage(model)
    refused(cli("inspect", model), words)
    with pytest.raises(LlmcError):
        inspect(model)


def test_nothing_is_imported_for_a_refusal(demo_folder: Path, tmp_path: Path) -> None:
    """What the folder's own files tell is refused before torch is imported, which takes seconds."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from llmc.compiler.frontends import dispatch\n"
        "from llmc.errors import LlmcError\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try:\n"
        "        dispatch.load(path)\n"
        "    except LlmcError as error:\n"
        "        print(str(error).splitlines()[0], 'torch' in sys.modules)\n"
    )
    places = [copied(demo_folder, tmp_path / str(i)) for i in range(len(FOLDERS))]
    for (damage, _), place in zip(FOLDERS.values(), places, strict=True):
        damage(place)
    lines = subprocess.run(
        [sys.executable, "-c", code, *places], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    imported = {case: line for case, line in zip(FOLDERS, lines, strict=True) if not line.endswith(" False")}
    assert imported == {}


def test_a_limit_that_is_infinite_is_none(model: Path, cli: Any) -> None:
    text("tokenizer_config.json", '{"model_max_length": 1e999}')(model)
    result = cli("inspect", model, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["tokenizer"]["max_length"] == found["max_positions"]


def test_a_padding_of_minus_one_is_none(model: Path, cli: Any) -> None:
    edit(pad_token_id=-1)(model)
    result = cli("inspect", model, "--json")
    assert json.loads(result.out)["tokenizer"]["pad_id"] == 0


def bomb(path: Path) -> None:
    """A .pt2 file that unpacks to a thousand times its size."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("m/models/model.json", "w") as file,
    ):
        file.write(bytes(1 << 24))


def external(location: str) -> Damage:
    """An ONNX file whose weight is in another one."""

    def damage(path: Path) -> None:
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [6])
        y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [6])
        w = onnx.numpy_helper.from_array(np.zeros(6, np.float32), "w")
        w.ClearField("raw_data")
        w.data_location = onnx.TensorProto.EXTERNAL
        w.external_data.add(key="location", value=location)
        graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], [w])
        opset = [helper.make_opsetid("", 17)]
        path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())

    return damage


def fifo(path: Path) -> None:
    os.mkfifo(path)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 20 << 30)


FILES: dict[str, tuple[str, Damage, str]] = {
    "a pipe as ONNX": ("m.onnx", fifo, "m.onnx is not a file"),
    "a pipe as .pt2": ("m.pt2", fifo, "m.pt2 is not a file"),
    "bytes as ONNX": ("m.onnx", lambda p: p.write_bytes(b"\xff" * 100), "not an ONNX model"),
    "20 GB of ONNX": ("m.onnx", huge, "m.onnx is too large"),
    "a .pt2 that unpacks to 1,000 times its size": ("m.pt2", bomb, "not a program of torch.export"),
    "weights in a folder above": ("m.onnx", external("../../w"), "outside the model's folder"),
    "weights in a device": ("m.onnx", external("/dev/zero"), "outside the model's folder"),
    "weights with a zero byte": ("m.onnx", external("a\0b"), "is missing"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path, cli: Any) -> None:
    name, damage, words = FILES[case]
    (tmp_path / "w").write_bytes(bytes(24))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    damage(folder / name)
    refused(cli("inspect", folder / name), words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cc", "nosuchcc"], "there is no C compiler 'nosuchcc'"),
        (["--cc", "'"], "--cc is not a command"),
        (["--max-batch", "9" * 20], "max_batch is larger than 2147483647"),
        (["--max-seq", "9" * 20], "max_seq is larger than 2147483647"),
    ],
)
def test_options(options: list[str], words: str, model: Path, tmp_path: Path, cli: Any) -> None:
    result = cli("compile", model, *options, "-o", tmp_path / "m.llmc")
    assert result.code == 1
    assert f"error: {words}" in result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]
