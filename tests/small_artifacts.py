"""Small artifacts of the C programs in tests/runtime: how each is compiled and packaged, and what it answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.checksums import Checksums
from llmc.runtime.manifest import seal
from llmc.runtime.sources import (
    BENCH_FLAGS,
    BENCH_LIBRARIES,
    BENCH_SOURCES,
    FOLDER,
    HEADER,
    MODULE_FLAGS,
    MODULE_LIBRARIES,
    MODULE_SOURCES,
    write_bench_hash,
)
from llmc.runtime.weights import weights_header
from llmc.targets import TARGETS, toolchain

HERE = Path(__file__).parent / "runtime"
BUILD_ID = "0123456789abcdef" * 4
ZIG = toolchain.compiler(TARGETS["x86"].zig, None)
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
TABLE = (np.arange(30, dtype=np.float32) - 7).reshape(10, 3)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def checksums(payload: bytes) -> str:
    """The flag that tells tiny.c and tally.c the checksums of their weights."""
    made = Checksums()
    made.add(payload)
    return f"-DWEIGHTS_CRC32C={','.join(f'{crc:#x}u' for crc in made.finish())}"


def weights_payload() -> bytes:
    return TABLE.tobytes().ljust(128, b"\0")


def compile_c(output: Path, *arguments: str, compiler: list[str] | None = None) -> Path:
    command = [*(compiler or ZIG), *STRICT, f"-I{FOLDER}", *arguments, "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output


def compile_module(
    output: Path,
    *arguments: str,
    compiler: list[str] | None = None,
    program: str = "tiny.c",
    payload: bytes | None = None,
) -> Path:
    """The program with the runtime; `payload`: its weights, where they are not the usual ones.

    What is defined is the program's only: the compiler has the runtime's objects from the call before.
    """
    usual = weights_payload() if program == "tiny.c" else bytes(64)
    size = (f"-DWEIGHTS_BYTES={len(payload)}",) if payload is not None else ()
    defined = (checksums(usual if payload is None else payload), *size, *filter(_defines, arguments))
    flags = [argument for argument in arguments if not _defines(argument)]
    own = output.with_name(f"{output.name}.o")
    compile_c(
        own,
        "-O2",
        "-fPIC",
        "-fvisibility=hidden",
        "-c",
        *defined,
        *flags,
        str(HERE / program),
        compiler=compiler,
    )
    sources = (str(own), *map(str, MODULE_SOURCES))
    compile_c(output, *MODULE_FLAGS, *flags, *sources, *MODULE_LIBRARIES, compiler=compiler)
    own.unlink()
    return output


def compile_bench(module: Path) -> None:
    """`bench` beside the module that it is for."""
    own = write_bench_hash(module.parent, sha256(module.read_bytes()))
    sources = map(str, (*BENCH_SOURCES, own))
    compile_c(module.with_name("bench"), *BENCH_FLAGS, *sources, *BENCH_LIBRARIES)
    own.unlink()


def _defines(argument: str) -> bool:
    return argument.startswith("-D")


def write_weights(path: Path, payload: bytes, build_id: str = BUILD_ID) -> None:
    path.write_bytes(weights_header(build_id, len(payload)) + payload)


def manifest_fields(folder: Path) -> dict[str, Any]:
    """All fields but the seal, for the files that `folder` holds."""
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": sha256(p.read_bytes())}
        for p in sorted(folder.iterdir())
        if p.name != "manifest.json"
    }
    return {
        "format": 2,
        "llmc": "0.1.0",
        "name": "tiny",
        "build_id": BUILD_ID,
        "task": "sentence-embedding",
        "functions": [
            {
                "name": "forward",
                "inputs": [
                    {"name": "input_ids", "dtype": "i64", "shape": ["batch", "seq"], "range": [0, 9]},
                    {"name": "attention_mask", "dtype": "i64", "shape": ["batch", "seq"], "default": 1},
                ],
                "outputs": [
                    {"name": "hidden", "dtype": "f32", "shape": ["batch", "seq", 3]},
                    {"name": "sums", "dtype": "f32", "shape": ["batch", 3]},
                    {"name": "ramp", "dtype": "f32", "shape": ["2*seq + 1"]},
                ],
            }
        ],
        "states": [],
        "dims": {"batch": [1, 64], "seq": [1, 512]},
        "target": "x86",
        "variants": [{"name": "avx2", "features": ["avx2", "fma"]}, {"name": "base", "features": []}],
        "pipeline": "",
        "quantisation": "none",
        "files": files,
        "selftest": {"rtol": 0, "atol": 1e-6},
        "labels": ["no", "yes"],
        "tokenizer": {"file": "tokenizer.json", "max_length": 128, "pad_id": 0, "pad_token": "[PAD]"},
        "postprocess": {},
        "sizes": {"parameters": 30},
    }


IDS = {"name": "ids", "dtype": "i64", "shape": ["batch", "seq"], "range": [0, 9]}
TALLY: dict[str, Any] = {
    "name": "tally",
    "build_id": "fedcba9876543210" * 4,
    "functions": [
        {
            "name": "step",
            "inputs": [
                IDS,
                {"name": "mask", "dtype": "i64", "shape": ["batch", "past + seq"], "default": 1},
                {"name": "rounds", "dtype": "i64", "shape": [], "default": 0},
            ],
            "outputs": [
                {"name": "sums", "dtype": "f32", "shape": ["batch", 3]},
                {"name": "history", "dtype": "i64", "shape": ["batch", "past + seq"]},
            ],
        },
        {
            "name": "peek",
            "inputs": [{"name": "scale", "dtype": "f32", "shape": [], "default": 1}],
            "outputs": [
                {"name": "scaled", "dtype": "f32", "shape": ["batch", 3]},
                {"name": "trail", "dtype": "f32", "shape": ["batch", "past"]},
            ],
        },
        {
            "name": "square",
            "inputs": [IDS],
            "outputs": [{"name": "squares", "dtype": "i64", "shape": ["batch", "seq"]}],
        },
    ],
    "states": [
        {"name": "total", "dtype": "f32", "shape": ["batch", 3], "grows": None},
        {"name": "seen", "dtype": "i64", "shape": ["past", "batch"], "grows": 0},
        {"name": "trail", "dtype": "f32", "shape": ["batch", "past"], "grows": 1},
    ],
    "dims": {"batch": [1, 4], "seq": [1, 8], "past": [0, 40]},
    "variants": [{"name": "base", "features": []}],
}


WORDS: dict[str, Any] = {
    "name": "words",
    "build_id": "0f1e2d3c4b5a6978" * 4,
    "task": "text-generation",
    "functions": [
        {
            "name": "step",
            "inputs": [
                {"name": "input_ids", "dtype": "i64", "shape": [1, "seq"], "range": [0, 40]},
                {"name": "logits_to_keep", "dtype": "i64", "shape": ["kept"]},
            ],
            "outputs": [{"name": "logits", "dtype": "f32", "shape": [1, "kept", 41]}],
        }
    ],
    "dims": {"seq": [1, 16], "kept": [1, 8], "past": [0, 64]},
    "states": [{"name": "seen", "dtype": "i64", "shape": ["past"], "grows": 0}],
    "variants": [{"name": "base", "features": []}],
    "generation": {
        "function": "step",
        "tokens": "input_ids",
        "keep": "logits_to_keep",
        "logits": "logits",
        "length": "past",
        "vocabulary": 41,
        "max_length": 64,
        "bos": None,
        "eos": [0],
        "pad": None,
        "defaults": {"max_new_tokens": 12},
        "chat": {"file": "chat_template.jinja", "tokens": {"eos_token": "</s>"}},
    },
}
_ADAPTER = {"name": "adapter", "dtype": "i64", "shape": [1, "seq"], "default": 0, "range": [0, 2]}
ADAPTED: dict[str, Any] = {
    "functions": [{**(step := WORDS["functions"][0]), "inputs": [*step["inputs"], _ADAPTER]}],
    "adapters": ["french", "german"],
}
FOLDED: dict[str, Any] = {
    "dims": {"seq": [1, 16], "kept": [1, 8]},
    "states": [{"name": "folded", "dtype": "i64", "shape": [1], "grows": None}],
    "generation": {**WORDS["generation"], "length": None},
}
CHAT = (
    "{% for message in messages %}{{ '<' + message['role'][0] + '>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


class TallyModel:
    """What tally.c should give, call after call."""

    def __init__(self, batch: int) -> None:
        self.total, self.seen = np.zeros((batch, 3), np.float32), np.zeros((batch, 0), np.int64)

    def step(self, ids: Any, mask: Any = None) -> dict[str, np.ndarray]:
        ids = np.asarray(ids)
        parts = [ids.sum(1), np.full(len(ids), ids.shape[1]), (ids * ids).sum(1)]
        self.total = self.total + np.stack(parts, 1).astype(np.float32)
        self.seen = np.concatenate([self.seen, ids], 1)
        return {"sums": self.total, "history": self.seen * (1 if mask is None else np.asarray(mask))}

    def peek(self, scale: float = 1) -> dict[str, np.ndarray]:
        return {"scaled": self.total * np.float32(scale), "trail": self.seen.astype(np.float32)}


def write_manifest(folder: Path, **changed: Any) -> None:
    fields = manifest_fields(folder) | changed
    for name, field in (("selftest.bin", "selftest"), ("tokenizer.json", "tokenizer")):
        if name not in fields["files"]:
            del fields[field]
    fields = seal(fields)
    (folder / "manifest.json").write_text(json.dumps(fields, indent=1))


def compute(ids: Any, mask: Any = None) -> dict[str, np.ndarray]:
    ids = np.asarray(ids)
    hidden = TABLE[ids] * (np.ones(ids.shape) if mask is None else np.asarray(mask))[..., None]
    outputs = {"hidden": hidden, "sums": hidden.sum(1), "ramp": np.arange(2 * ids.shape[1] + 1)}
    return {name: array.astype(np.float32) for name, array in outputs.items()}


def write_tokenizer(path: Path) -> None:
    """Words a to h have ids 2 to 9; anything else is 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[PAD]": 0, "[UNK]": 1, **{word: 2 + i for i, word in enumerate("abcdefgh")}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def write_bytes_tokenizer(path: Path) -> None:
    """41 tokens: the end of a text, two of chats, letters, blanks, and the bytes of é, € and of a smiling face."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    bytes_ = [*range(ord("a"), ord("z") + 1), *b" \n", *"é€😀".encode()]
    shown = {byte: text for text, byte in zip(sorted_alphabet(), byte_order(), strict=True)}
    words = {"</s>": 0, "<u>": 1, "<a>": 2, **{shown[b]: 3 + i for i, b in enumerate(dict.fromkeys(bytes_))}}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("</s>", "<u>", "<a>")])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


def byte_order() -> list[int]:
    """Bytes in the order in which GPT-2 names them: those that can be seen by themselves, the others from U+0100 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return seen + [b for b in range(256) if b not in seen]


def sorted_alphabet() -> list[str]:
    """What byte-level tokenizers write for these bytes."""
    return [chr(b) for b in byte_order()[:188]] + [chr(256 + i) for i in range(68)]


def write_words(folder: Path, *flags: str, **changed: Any) -> Path:
    """The artifact of words.c."""
    folder.mkdir()
    compile_module(folder / "module.so", *flags, program="words.c")
    shutil.copy(HEADER, folder)
    write_weights(folder / "weights.bin", bytes(64), WORDS["build_id"])
    write_bytes_tokenizer(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(CHAT)
    tokenizer = {"file": "tokenizer.json", "max_length": 64, "pad_id": 0, "pad_token": "</s>"}
    write_manifest(folder, **{**WORDS, "tokenizer": tokenizer, **changed})
    return folder


def write_windowed(folder: Path, window: int) -> Path:
    return write_long(folder, f"-DWORDS_WINDOW={window}")


def write_long(folder: Path, *flags: str, wide: int = 1) -> Path:
    """`words` of up to 400 tokens, each of which takes `wide` numbers in its state."""
    longer: dict[str, Any] = {
        "dims": {**WORDS["dims"], "past": [0, 400]},
        "generation": {**WORDS["generation"], "max_length": 400},
    }
    if wide > 1:
        longer["states"] = [{**WORDS["states"][0], "shape": ["past", wide]}]
    return write_words(folder, *flags, f"-DWORDS_WIDE={wide}", "-DWORDS_BOUND=400", **longer)
