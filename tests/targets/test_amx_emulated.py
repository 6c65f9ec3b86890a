"""AMX tiles where no processor has them: kernels on an emulator (amx_lab.py), held to every bit of the reference.

test_amx.py and its like run the same kernels on processors with AMX; these are then skipped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amx_lab
import numpy as np
import pytest
from amx_lab import AmxLab
from integer_products import (
    bf16_product,
    blocks_product,
    extremes,
    given,
    int16_product,
    product,
    split_product,
)
from kernel_lab import CUTS, Array, argument, same_bits
from level_convolutions import CASES, convolution, images, sized_at_run_time

from llmc.compiler.graph import DTYPES, Graph
from llmc.compiler.interpret import run
from llmc.targets.cpu.lower import LOWERINGS
from llmc.targets.cpu.products import amx
from llmc.targets.cpu.variants import AVX512AMX, FLOATS, TILED_BLOCKS
from llmc.targets.tir.emit import Emitter

pytestmark = pytest.mark.skipif(bool(amx_lab.why_not()), reason=amx_lab.why_not())

WHOLE = (1 << 40,)
ROWS = [*range(1, 35), 47, 48, 49, 128, 129, 257]
EPILOGUE = ("bias", "relu", "residual")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> AmxLab:
    return AmxLab(tmp_path_factory.mktemp("amx"), LOWERINGS)


Made = tuple[Graph, Callable[[int], dict[str, Any]]]


def made(family: str, n: int, k: int, epilogue: tuple[str, ...] = EPILOGUE) -> Made:
    """A graph of one product, and what gives its inputs for a number of rows."""
    if family == "split_linear":
        graph, _ = split_product(n, k, 20, epilogue)
    elif family == "int16_linear":
        graph, _ = int16_product(n, k, 20, epilogue)
    elif family == FLOATS:
        graph = bf16_product(n, k, 20, epilogue)
    elif family == TILED_BLOCKS:
        graph = blocks_product("int16", n, k, 8, 128, epilogue)
    else:
        return made_of_rows(n, k, epilogue, family.removeprefix("qlinear").strip())
    return graph, lambda m: extremes(graph, m, 20)


def made_of_rows(n: int, k: int, epilogue: tuple[str, ...], zero: str) -> Made:
    """Likewise of qlinear, with a zero point of that dtype if one is named."""
    plain, _ = product(n, k, 20, epilogue)
    if not zero:
        return plain, lambda m: given(plain, k, m, 20)
    graph, _ = product(n, k, 20, epilogue, zero)
    point = DTYPES[zero].type(117 if zero == "u8" else -91)
    return graph, lambda m: {**given(plain, k, m, 20), "zero": point}


ROUND = ["qlinear", "qlinear u8", "qlinear i8", "split_linear", "int16_linear", FLOATS]  # depths of any size
FAMILIES = [*ROUND, TILED_BLOCKS]


def check(lab: AmxLab, graph: Graph, inputs: dict[str, Any], cuts: tuple[int, ...] = WHOLE) -> None:
    """The reference's bits, by products of tiles."""
    before = lab.products
    found = lab.run(graph, inputs, cpu=AVX512AMX, cuts=cuts)["y"]
    assert same_bits(found, run(graph, inputs)["y"]), f"not the reference's bits: {found.shape}, {cuts}"
    assert lab.products > before, "no tiles were multiplied"


def test_no_family_is_forgotten() -> None:
    assert {family.split()[0] for family in FAMILIES} | {"qconv2d"} == AVX512AMX.own


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_rows(lab: AmxLab, family: str) -> None:
    """One to three tiles of rows, all of one height, the last two overlapping; items in one piece and one by one."""
    graph, inputs = made(family, 96, 192)
    for m in ROWS:
        for cuts in (WHOLE, (1,)):
            check(lab, graph, inputs(m), cuts)


@pytest.mark.parametrize("family", ROUND)
@pytest.mark.parametrize(("n", "k"), [(130, 321), (33, 65), (1, 127), (48, 64), (17, 513)])
def test_odd_sizes(lab: AmxLab, family: str, n: int, k: int) -> None:
    """Columns around panels of each width, depths around whole tiles; panels that take turns, or blocks of rows."""
    graph, inputs = made(family, n, k)
    for m in (1, 16, 21, 40, 65, 257):
        for cuts in (WHOLE, *CUTS):
            check(lab, graph, inputs(m), cuts)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "block"), [(130, 320, 128), (33, 64, 64), (1, 448, 192), (48, 256, 256), (17, 576, 64)]
)
def test_blocks_of_whole_tiles(lab: AmxLab, n: int, k: int, block: int, zeros: bool) -> None:
    """Of one to four tiles, and last blocks that are shorter."""
    graph = blocks_product("int16", n, k, 8, block, EPILOGUE, np.float16, zeros)
    for m in (1, 16, 21, 40, 65, 257):
        for cuts in (WHOLE, *CUTS):
            check(lab, graph, extremes(graph, m, 20), cuts)


@pytest.mark.parametrize(("k", "block", "bits"), [(96, 32, 8), (129, 64, 8), (96, 96, 8), (128, 64, 4)])
def test_other_blocks_are_for_vectors(lab: AmxLab, k: int, block: int, bits: int) -> None:
    graph, before = blocks_product("int16", 50, k, bits, block, EPILOGUE), lab.products
    inputs = extremes(graph, 21, 20)
    assert same_bits(lab.run(graph, inputs, cpu=AVX512AMX)["y"], run(graph, inputs)["y"])
    assert lab.products == before


@pytest.mark.parametrize("case", CASES)
def test_convolutions(lab: AmxLab, case: Any) -> None:
    graph, values = convolution(case, by_image=case[-1] is None)
    for cuts in (WHOLE, *CUTS):
        check(lab, graph, values, cuts)


@pytest.mark.parametrize(
    "size", [(1, 1, 1), (1, 1, 15), (4, 2, 2), (1, 17, 1), (3, 4, 4), (1, 7, 7), (2, 13, 37)]
)
def test_numbers_of_pixels(lab: AmxLab, size: tuple[int, int, int]) -> None:
    for cuts in (WHOLE, *CUTS):
        check(lab, sized_at_run_time(), images(*size), cuts)


Instruction = tuple[Any, ...]  # a name, and what follows it
Change = Callable[[Instruction], Instruction | None]


def _further(instruction: Instruction) -> Instruction:
    *others, stride = instruction
    return *others, stride + 64


def _beside(instruction: Instruction) -> Instruction:
    name, tile, *others = instruction
    return name, tile ^ 1, *others


WRONG = "not the reference's bits"
# instruction, which of them as they are written, what becomes of it, and what is said then
BROKEN: list[tuple[str, int, Change, str]] = [
    ("tdpbusd", 0, lambda i: None, WRONG),
    ("tdpbusd", 5, lambda i: None, WRONG),
    ("tdpbusd", 0, lambda i: (*i[:2], i[3], i[2]), "tdpbusd: 14 rows of 64 bytes, by 16 of 64 and 14 of 64"),
    ("tdpbusd", 0, lambda i: (*i[:2], i[1], i[3]), "tdpbusd: one tile twice"),
    ("tilezero", 0, lambda i: None, WRONG),
    ("tileloadd64", 0, _further, "tileloadd: 64 bytes outside"),
    ("tileloadd64", 2, _further, WRONG),
    ("tileloadd64", 3, _beside, WRONG),
    ("tilestored64", 0, _beside, WRONG),
    ("tilestored64", 5, _further, WRONG),
    ("ldtilecfg", 0, lambda i: None, "tilezero: no tile is configured"),
    ("tilerelease", 0, lambda i: None, "tilerelease: it is missing"),
]


# likewise of weights in blocks
BROKEN_BLOCKS: list[tuple[str, int, Change, str]] = [
    ("tdpbsud", 3, lambda i: None, WRONG),
    ("tdpbsud", 0, lambda i: ("tdpbusd", *i[1:]), WRONG),
    ("tilezero", 0, lambda i: None, WRONG),
    ("tileloadd64", 2, _further, "tileloadd: 64 bytes outside"),
    ("tilestored64", 1, _beside, WRONG),
]


# likewise of floats
BROKEN_FLOATS: list[tuple[str, int, Change, str]] = [
    ("tdpbf16ps", 3, lambda i: None, WRONG),
    ("tdpbf16ps", 0, lambda i: (*i[:2], i[1], i[3]), "tdpbf16ps: one tile twice"),
    ("tilezero", 0, lambda i: None, WRONG),
    ("tileloadd64", 2, _further, WRONG),
    ("tilestored64", 1, _beside, WRONG),
]


@pytest.mark.parametrize(
    ("family", "name", "at", "change", "said"),
    [
        *(("qlinear", *broken) for broken in BROKEN),
        *((TILED_BLOCKS, *broken) for broken in BROKEN_BLOCKS),
        *((FLOATS, *broken) for broken in BROKEN_FLOATS),
    ],
)
def test_a_broken_kernel_is_seen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    name: str,
    at: int,
    change: Change,
    said: str,
) -> None:
    """Of 40 rows two steps have two tiles and one has one."""
    plain, met = amx._tile, itertools.count()

    def tile(e: Emitter, *instruction: Any) -> None:
        changed = change(instruction) if instruction[0] == name and next(met) == at else instruction
        if changed:
            plain(e, *changed)

    monkeypatch.setattr(amx, "_tile", tile)
    graph, inputs = made(family, 96, 192)
    with pytest.raises(AssertionError, match=said):
        check(AmxLab(tmp_path, LOWERINGS), graph, inputs(40))
    assert next(met) > at


def configuration(tiles: dict[int, tuple[int, int]], palette: int = 1, byte: int = 0) -> Array:
    """64 bytes for tiles of (rows, bytes of a row); `byte` is one that must be 0, and is not."""
    made = np.zeros(64, np.uint8)
    made[0] = palette
    for tile, (rows, size) in tiles.items():
        made[48 + tile] = rows
        made[16 + 2 * tile : 18 + 2 * tile].view(np.uint16)[0] = size
    if byte:
        made[byte] = 1
    return made


def do(lab: AmxLab, name: str, *arguments: Array | int) -> None:
    """One instruction."""
    lab.amx[f"amx_{name}"](*map(argument, arguments))


def multiply(lab: AmxLab, name: str, config: np.ndarray, *arrays: np.ndarray) -> None:
    """The first array += the second times the third, by an instruction, each from its own tile."""
    sums, *_ = arrays
    lab.begin(config, *arrays[1:], sums)
    do(lab, "ldtilecfg", config)
    for tile, array in enumerate(arrays):
        do(lab, "tileloadd64", tile, array, array.strides[0])
    do(lab, name, 0, 1, 2)
    do(lab, "tilestored64", 0, sums, sums.strides[0])
    do(lab, "tilerelease")
    assert lab.end() == ""


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (configuration({0: (17, 64)}), "ldtilecfg: tile 0 of 17 rows of 64 bytes"),
        (configuration({7: (16, 68)}), "ldtilecfg: tile 7 of 16 rows of 68 bytes"),
        (configuration({3: (0, 64)}), "ldtilecfg: tile 3 of 0 rows of 64 bytes"),
        (configuration({3: (1, 64)}, palette=2), "ldtilecfg: palette 2"),
        (configuration({3: (1, 64)}, byte=1), "ldtilecfg: byte 1 is 1, must be 0"),
        (configuration({3: (1, 64)}, byte=56), "ldtilecfg: byte 56 is 1, must be 0"),
    ],
)
def test_configurations_that_are_refused(lab: AmxLab, config: Array, said: str) -> None:
    lab.begin(config)
    do(lab, "ldtilecfg", config)
    assert lab.end() == said


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("tilezero", (8,), "tilezero: there is no tile 8"),
        ("tilezero", (5,), "tilezero: tile 5 is not configured"),
        ("tilezero", (3,), "tilezero: tile 3 has rows of 6 bytes"),
        ("tdpbusd", (0, 1, 5), "tdpbusd: tile 5 is not configured"),
        ("tdpbusd", (0, 0, 2), "tdpbusd: one tile twice"),
        ("tdpbusd", (0, 4, 2), "tdpbusd: 3 rows of 12 bytes, by 4 of 20 and 5 of 12"),  # rows of sums
        ("tdpbusd", (6, 1, 2), "tdpbusd: 3 rows of 16 bytes, by 3 of 20 and 5 of 12"),  # columns of sums
        ("tdpbusd", (0, 1, 7), "tdpbusd: 3 rows of 12 bytes, by 3 of 20 and 4 of 12"),  # products of a sum
    ],
)
def test_tiles_that_are_refused(lab: AmxLab, name: str, arguments: tuple[int, ...], said: str) -> None:
    tiles = {0: (3, 12), 1: (3, 20), 2: (5, 12), 3: (2, 6), 4: (4, 20), 6: (3, 16), 7: (4, 12)}
    config = configuration(tiles)
    lab.begin(config)
    do(lab, "ldtilecfg", config)
    do(lab, name, *arguments)
    do(lab, "tilerelease")
    assert lab.end() == said


def test_tiles_of_any_size(lab: AmxLab) -> None:
    """3 x 5 words by 5 x 3: nothing beyond a tile is read, multiplied or written; sums go on, modulo 2^32."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (3, 50), np.uint8), rng.integers(-128, 128, (5, 30), np.int8)
    start = rng.integers(-(2**31), 2**31, (3, 3), np.int32)
    start[0] = 2**31 - 1
    a[0], b[:, :12] = 255, abs(b[:, :12].astype(int)).clip(1, 127)
    sums = np.full((3, 7), 7, np.int32)
    sums[:, :3] = start
    config = configuration({0: (3, 12), 1: (3, 20), 2: (5, 12)})
    multiply(lab, "tdpbusd", config, sums, a, b)
    words = b[:, :12].reshape(5, 3, 4).transpose(0, 2, 1).reshape(20, 3)
    assert np.array_equal(
        sums[:, :3], (start + a[:, :20].astype(np.int64) @ words.astype(np.int64)).astype(np.int32)
    )
    assert (sums[:, 3:] == 7).all()


def test_bfloat16_as_the_manual_has_it(lab: AmxLab) -> None:
    """Two chains from 0, their sum to the sums; denormals are taken for 0, and made 0."""
    one, least, least_half = 0x3F80, 0x0080, 0x0040  # 1, 2^-126, and a denormal
    a, b = np.zeros((2, 8), np.uint16), np.zeros((4, 4), np.uint16)
    a[0, :4], a[1, :2] = one, (least_half, least)
    big, one_more = 0x4B80, 0x3F80  # 2^24: 1 more is lost in one chain
    b[0, :2], b[1, :2], b[0, 2:] = (big, one_more), (one_more, one_more), (one, 0x3F00)
    sums = np.array([[0.0, 1.0], [0.0, 1e-40]], np.float32)
    config = configuration({0: (2, 8), 1: (2, 16), 2: (4, 8)})
    multiply(lab, "tdpbf16ps", config, sums, a, b)
    # even: 2^24 + 1 = 2^24; odd: 1 + 1; then 2^24 + 2. The second row: a denormal * 2^24 + 2^-126 * 1, and
    # a denormal * 1 + 2^-126 / 2 to a denormal sum
    wanted = np.array([[2.0**24 + 2, 2.5], [2.0**-126, 0.0]], np.float32)
    assert np.array_equal(sums, wanted)
