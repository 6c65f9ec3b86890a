"""weights.bin against the checksums in the module: every damage is refused, by whoever opens it."""

from __future__ import annotations

import ctypes
import itertools
import random
import shutil
import subprocess

import numpy as np
import pytest

from llmc import LlmcError
from llmc.cli import main
from llmc.compiler.checksums import BLOCK, Checksums, crc32c
from llmc.runtime import Threads, load
from llmc.runtime.sources import FOLDER
from llmc.runtime.weights import HEADER_BYTES

IDS = np.array([[1, 2, 3]])
REST = 12_345  # bytes after the last whole block


def bitwise(data):
    """CRC-32C as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """The functions of crc32c.c, the second of which is what processors without the instruction run."""
    output = tmp_path_factory.mktemp("crc32c") / "crc32c.so"
    sources = [str(FOLDER / name) for name in ("crc32c.c", "cpu.c")]
    subprocess.run(["cc", "-std=gnu99", "-O2", "-shared", "-fPIC", *sources, "-o", output], check=True)
    library = ctypes.CDLL(str(output))
    found = [library.llmc_crc32c_by_table]
    if library.llmc_cpu_has_crc32c():
        found.append(library.llmc_crc32c_by_instruction)
    for function in found:
        function.restype, function.argtypes = ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_size_t]
    return [lambda data, f=function: f(bytes(data), len(data)) for function in found]


def test_the_known_checksum(ways):
    assert {f(b"123456789") for f in (bitwise, crc32c, *ways)} == {0xE3069283}
    assert {f(bytes(32)) for f in (bitwise, crc32c, *ways)} == {0x8A9136AA}  # RFC 3720, B.4


@pytest.mark.parametrize("length", [*range(75), 127, 1000, 4095, 4099])
def test_every_way_gives_the_same_checksum(ways, length):
    data = random.Random(length).randbytes(length)
    assert {f(data) for f in (crc32c, *ways)} == {bitwise(data)}


@pytest.mark.parametrize("length", [BLOCK - 1, BLOCK, 3 * BLOCK // 4 + 5])
def test_of_large_blocks(ways, length):
    data = random.Random(length).randbytes(length)
    assert len({f(data) for f in (crc32c, *ways)}) == 1


def test_blocks_of_a_stream():
    data = random.Random(0).randbytes(2 * BLOCK + REST)
    made = Checksums()
    for begin, end in itertools.pairwise((0, 5, BLOCK - 1, BLOCK + 1, 2 * BLOCK + 3, len(data))):
        made.add(data[begin:end])
    assert made.finish() == tuple(crc32c(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))
    assert Checksums().finish() == ()


@pytest.fixture(scope="module")
def original(tmp_path_factory, build):
    """An artifact whose weights are two whole blocks and a part of one."""
    folder = tmp_path_factory.mktemp("weights") / "m.llmc"
    folder.mkdir()
    payload = build.weights_payload() + random.Random(1).randbytes(2 * BLOCK + REST - 128)
    build.compile_module(folder / "module.so", payload=payload)
    build.write_weights(folder / "weights.bin", payload)
    build.write_manifest(folder)
    return folder


@pytest.fixture
def artifact(original, tmp_path):
    return shutil.copytree(original, tmp_path / "m.llmc")


def change(path, at, data):
    """Write into the file as it is, as a bad copy would have left it; what was there."""
    with path.open("r+b") as file:
        file.seek(at)
        before = file.read(len(data))
        file.seek(at)
        file.write(data)
    return before


def refusal(folder, **options):
    with pytest.raises(LlmcError) as caught:
        load(folder, **options)
    return str(caught.value)


def test_every_flipped_bit_is_refused(artifact):
    weights, rng = artifact / "weights.bin", random.Random(0)
    size = weights.stat().st_size
    edges = [
        0,
        8,
        72,
        80,
        HEADER_BYTES - 1,
        HEADER_BYTES,
        HEADER_BYTES + BLOCK - 1,
        HEADER_BYTES + BLOCK,
        size - 1,
    ]
    for number, at in enumerate([*edges, *(rng.randrange(size) for _ in range(300))]):
        was = weights.read_bytes()[at]
        change(weights, at, bytes([was ^ 1 << rng.randrange(8)]))
        assert str(weights) in refusal(artifact, threads=1 + number % 3)
        change(weights, at, bytes([was]))
    load(artifact).close()


@pytest.mark.parametrize("length", [4, 512, 4096, BLOCK])
def test_lost_stretches_are_refused(artifact, length):
    """Zeros where there was something: what is left of a copy that was interrupted."""
    weights, rng = artifact / "weights.bin", random.Random(length)
    for _ in range(20):
        at = HEADER_BYTES + rng.randrange(2 * BLOCK + REST - length)
        before = change(weights, at, bytes(length))
        assert "is damaged" in refusal(artifact)
        change(weights, at, before)


def test_blocks_in_another_order_are_refused(artifact):
    weights = artifact / "weights.bin"
    first = change(weights, HEADER_BYTES, weights.read_bytes()[HEADER_BYTES + BLOCK :][:BLOCK])
    change(weights, HEADER_BYTES + BLOCK, first)
    assert "of its 3 blocks of 1 MiB 2 differ from what was compiled, the first at byte 4096" in refusal(
        artifact
    )


@pytest.mark.parametrize("size", [0, 100, HEADER_BYTES, 2 * BLOCK, -1, 1, BLOCK])
def test_other_sizes_are_refused(artifact, size):
    """Cut to `size` bytes if it is large enough to be one, else longer or shorter by so much."""
    data = (artifact / "weights.bin").read_bytes()
    wanted = size if size in (0, 100, HEADER_BYTES, 2 * BLOCK) else len(data) + size
    (artifact / "weights.bin").write_bytes(data.ljust(wanted, b"\0")[:wanted])
    assert f"{wanted} bytes, the manifest says {len(data)}" in refusal(artifact)


def test_the_place_is_said(artifact):
    change(artifact / "weights.bin", HEADER_BYTES + 2 * BLOCK + 7, b"other")
    text = refusal(artifact)
    assert (
        f"of its 3 blocks of 1 MiB 1 differ from what was compiled, the first at byte {4096 + 2 * BLOCK}"
        in text
    )
    assert "copy the artifact again" in text


def test_shared_threads_check_too(artifact):
    threads = Threads(2)
    load(artifact, threads).close()
    change(artifact / "weights.bin", HEADER_BYTES, b"other")
    assert "is damaged" in refusal(artifact, threads=threads)


def test_without_the_check(artifact, expected):
    change(artifact / "weights.bin", HEADER_BYTES + BLOCK, b"other")  # not in the table that tiny reads
    with load(artifact, threads=1, check_weights=False) as model:
        assert all(np.array_equal(v, expected(IDS)[n]) for n, v in model(input_ids=IDS).items())
    change(artifact / "weights.bin", 80, b"x")
    assert "byte 80 of" in refusal(artifact, check_weights=False)


def test_a_module_without_checksums(tmp_path, build):
    """By another generator, say: it is not taken for whole."""
    build.compile_module(tmp_path / "module.so", "-DHAS_CHECKSUMS=0")
    build.write_weights(tmp_path / "weights.bin", build.weights_payload())
    build.write_manifest(tmp_path)
    assert "the module has no checksums of" in refusal(tmp_path)
    load(tmp_path, check_weights=False).close()


@pytest.mark.parametrize("program", ["llmc run", "llmc bench", "bench"])
def test_programs_refuse_damage_unless_told(copy_of_tiny, tmp_path, capfd, program):
    np.save(ids := tmp_path / "ids.npy", IDS)
    change(copy_of_tiny / "weights.bin", HEADER_BYTES + 127, b"x")
    brief = ("--duration", "0.02", "--warmup", "1")

    def start(*options):
        if program == "bench":
            return subprocess.run([copy_of_tiny / "bench", *brief, *options]).returncode
        name = program.split()[1]
        own = ("--input", f"input_ids={ids}") if name == "run" else ("--duration", "0.02")
        return main([name, str(copy_of_tiny), *own, *options])

    assert start() == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "weights.bin is damaged: of its 1 blocks of 1 MiB 1 differ" in err
    assert start("--no-check") == 0
