"""The Python runtime on the artifact `tiny`: what it accepts, refuses and gives."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llmc import LlmcError
from llmc.runtime import TensorInfo, Threads, load, native

IDS = np.array([[1, 2, 3], [4, 5, 6]])


@pytest.fixture(scope="module")
def model(tiny):
    with load(tiny, threads=2) as model:
        yield model


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 64), (64, 512), (2, 5)])
def test_run(tiny, expected, threads, shape):
    rng = np.random.default_rng(0)
    with load(tiny, threads=threads) as model:
        ids, mask = rng.integers(0, 10, shape), rng.integers(0, 2, shape)
        same(model(input_ids=ids, attention_mask=mask), expected(ids, mask))
        same(model(input_ids=ids), expected(ids))


def test_signature(model):
    assert model.inputs["input_ids"] == TensorInfo("i64", ("batch", "seq"), None, (0, 9))
    assert list(model.outputs.items())[2] == ("ramp", TensorInfo("f32", ("2*seq + 1",)))
    assert dict(model.dims) == {"batch": (1, 64), "seq": (1, 512)}
    assert (model.labels, model.task, model.threads) == (("no", "yes"), "sentence-embedding", 2)
    assert "input_ids: i64[batch, seq]" in repr(model)
    assert model.variant in ("avx2", "base")


@pytest.mark.parametrize(
    "ids",
    [
        IDS.astype(np.int32),
        IDS.astype(np.uint8),
        IDS.astype(">i8"),
        IDS.tolist(),
        np.asfortranarray(IDS),
        np.repeat(IDS, 2, axis=1)[:, ::2],
        np.frombuffer(b"x" + IDS.tobytes(), np.int64, offset=1).reshape(2, 3),
    ],
    ids=["int32", "uint8", "big-endian", "list", "fortran", "strided", "unaligned"],
)
def test_accepts(model, expected, ids):
    same(model(input_ids=ids), expected(IDS))


def test_bool_mask(model, expected):
    mask = np.array([[True, False, True], [False, True, True]])
    same(model(input_ids=IDS, attention_mask=mask), expected(IDS, mask))


BAD_CALLS = {
    "missing": ({}, "input input_ids is missing"),
    "unknown": ({"input_id": IDS}, "the model has no input 'input_id'\n  hint:  did you mean input_ids?"),
    "none": ({"input_ids": None}, "input input_ids is None"),
    "float": ({"input_ids": IDS.astype(np.float32)}, "input input_ids is float32, must be int64"),
    "floats": ({"input_ids": [[1.0]]}, "list or number of Python floats"),
    "uint64": ({"input_ids": IDS.astype(np.uint64)}, "input input_ids is uint64, must be int64"),
    "ragged": ({"input_ids": [[1], [1, 2]]}, "input input_ids is no array"),
    "text": ({"input_ids": "abc"}, "must be int64"),
    "huge": ({"input_ids": [[2**80]]}, "must be int64"),
    "object": ({"input_ids": object()}, "must be int64"),
    "rank": ({"input_ids": IDS[0]}, "input input_ids has 1 axes, must have 2"),
    "rank 12": ({"input_ids": np.zeros((1,) * 12, int)}, "has 12 axes"),
    "scalar": ({"input_ids": 5}, "input input_ids has 0 axes"),
    "too long": (
        {"input_ids": np.zeros((1, 513), int)},
        "seq is 513 in axis 1 of input input_ids, must be within 1..512",
    ),
    "empty": ({"input_ids": np.zeros((0, 5), int)}, "batch is 0 in axis 0"),
    "disagree": (
        {"input_ids": IDS, "attention_mask": np.ones((2, 4), int)},
        "seq is 4 in axis 1 of input attention_mask, but 3 in input input_ids",
    ),
    "range": ({"input_ids": [[1, 2], [3, 40000]]}, "input_ids[1,1] is 40000, must be within 0..9"),
    "negative": ({"input_ids": [[-1]]}, "input_ids[0,0] is -1, must be within 0..9"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_refuses(model, expected, name):
    inputs, message = BAD_CALLS[name]
    with pytest.raises(LlmcError) as caught:
        model.run(inputs)
    assert message in str(caught.value)
    same(model(input_ids=IDS), expected(IDS))


def test_out(model, expected):
    sums = np.empty((2, 3), np.float32)
    found = model(input_ids=IDS, out={"sums": sums})
    assert found["sums"] is sums
    same(found, expected(IDS))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"sum": np.empty(3)}, "the model has no output 'sum'\n  hint:  did you mean sums?"),
        ({"sums": [1]}, "out['sums'] is list, must be a NumPy array"),
        ({"sums": np.empty((2, 3))}, "out['sums'] is float64[2, 3], must be float32[2, 3]"),
        ({"sums": np.empty((3, 2), np.float32)}, "must be float32[2, 3]"),
        ({"sums": np.empty((3, 2), np.float32).T}, "must be writeable, aligned and C-contiguous"),
    ],
)
def test_out_refuses(model, out, message):
    with pytest.raises(LlmcError) as caught:
        model(input_ids=IDS, out=out)
    assert message in str(caught.value)


def test_out_overlap(model):
    memory = np.zeros(64, np.float32)
    ids = memory[:12].view(np.int64).reshape(2, 3)
    with pytest.raises(LlmcError, match=r"out\['sums'\] overlaps input input_ids"):
        model(input_ids=ids, out={"sums": memory[:6].reshape(2, 3)})
    with pytest.raises(LlmcError, match=r"out\['sums'\] overlaps out\['hidden'\]"):
        model(
            input_ids=IDS, out={"hidden": memory[:18].reshape(2, 3, 3), "sums": memory[17:23].reshape(2, 3)}
        )


class ForeignTensor:
    """An array of another library, which speaks DLPack only."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack(model, expected):
    same(model(input_ids=ForeignTensor(IDS)), expected(IDS))
    output = model(input_ids=IDS)["sums"]
    assert np.shares_memory(np.from_dlpack(output), output)


def test_torch(model, expected):
    torch = pytest.importorskip("torch")
    same(
        model(input_ids=torch.tensor(IDS.tolist()), attention_mask=torch.ones(2, 3).bool()),
        expected(IDS),
    )
    with pytest.raises(LlmcError, match=r"\.detach\(\)\.cpu\(\)"):
        model(input_ids=torch.ones(2, 3, requires_grad=True))
    with pytest.raises(LlmcError, match="cannot be read"):
        model(input_ids=torch.ones(2, 3, device="meta"))


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, True])
def test_bad_threads(tiny, threads):
    with pytest.raises(LlmcError, match="threads is"):
        load(tiny, threads=threads)


def test_variants(tiny, expected):
    with load(tiny, variant="base") as model:
        assert model.variant == "base"
        same(model(input_ids=IDS), expected(IDS))
    with pytest.raises(LlmcError, match=r"no variant 'sse'\n(.*\n)?.*use one of: never, avx2, base"):
        load(tiny, variant="sse")
    with pytest.raises(LlmcError, match="lacks feature 31, which variant never"):
        load(tiny, variant="never")


def test_close(tiny):
    model = load(tiny, threads=1)
    model.close()
    model.close()
    with pytest.raises(LlmcError, match="the model is closed"):
        model(input_ids=IDS)


def test_many_threads(tiny, expected):
    """Several Python threads on one model and on two get their own results."""
    rng = np.random.default_rng(1)
    cases = [rng.integers(0, 10, (rng.integers(1, 9), rng.integers(1, 200))) for _ in range(200)]
    with load(tiny, threads=3) as a, load(tiny, threads=2) as b, ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(lambda i: (a, b)[i % 2](input_ids=cases[i]), range(200))):
            same(found, expected(cases[i]))


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory, tiny, build):
    """A model whose runs take a good part of a second."""
    folder = tmp_path_factory.mktemp("slow")
    build.write_weights(folder / "weights.bin", build.weights_payload())
    build.compile_module(folder / "module.so", "-DREPEAT=1500")
    build.write_manifest(folder)
    return load(folder, threads=1)


def test_releases_the_gil(slow_model):
    """This thread goes on within a run of another, however long a run takes."""
    ids, ticks, runs = np.zeros((64, 512), int), [], []

    def work():
        for _ in range(5):
            begin = time.perf_counter()
            slow_model(input_ids=ids)
            runs.append((begin, time.perf_counter()))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    assert max(sum(begin < tick < end for tick in ticks) for begin, end in runs) > 3


def test_close_while_running(slow_model, tiny, build, expected):
    ids = np.zeros((64, 512), int)
    model = load(slow_model.path, threads=2)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(model.run, {"input_ids": ids})
        time.sleep(0.02)
        model.close()
        del model
        same(future.result(), expected(ids))


def test_models_share_threads(tiny, copy_of_tiny, expected):
    """Of one module and of two, from several threads at once; the threads outlive their maker's name."""
    threads, ids = Threads(3, pin=True), np.random.default_rng(2).integers(0, 10, (64, 512))
    models = [load(path, threads) for path in (tiny, tiny, copy_of_tiny)]
    assert [m.threads for m in models] == [3, 3, 3]
    del threads
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda i: models[i % 3](input_ids=ids), range(30)):
            same(found, expected(ids))
    models[0].close()
    same(models[1](input_ids=ids), expected(ids))


@pytest.mark.parametrize("number", [0, -1, 1025, 2.0, True])
def test_bad_shared_threads(number):
    with pytest.raises(LlmcError, match="must be an int"):
        Threads(number)


def test_shared_threads_of_another_version(tiny):
    """What a module of another llmc would be given."""
    head = (ctypes.c_int * 2)(native.VERSION + 1)
    shared = ctypes.pointer(ctypes.c_void_p(ctypes.addressof(head)))
    library = native.Library(tiny / "module.so")
    with pytest.raises(LlmcError, match=f"speak version {native.VERSION + 1}"):
        native.Handle(library, tiny, native.Options(shared=ctypes.cast(shared, ctypes.c_void_p)))


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_fork(model, expected):
    """A child of fork() gets an error from its parent's model, and may open its own."""
    model(input_ids=IDS)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            model(input_ids=IDS)
        except LlmcError as error:
            own = load(model.path, threads=2)
            same(own(input_ids=IDS), expected(IDS))
            code = 0 if "opened by the parent process" in str(error) else 2
            model.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    same(model(input_ids=IDS), expected(IDS))


def test_imports_little(tiny):
    """Loading and running needs NumPy alone."""
    code = (
        "import sys, llmc, numpy as np\n"
        f"llmc.load({str(tiny)!r})(input_ids=np.ones((1, 2), int))\n"
        "heavy = ('torch', 'transformers', 'tvm', 'sympy', 'tokenizers', 'click', 'rich')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_manifest_needs_no_numpy(tiny):
    code = (
        "import sys\nfrom llmc.runtime import read_manifest\n"
        f"print(read_manifest({str(tiny)!r}).name, 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "tiny False\n", result.stderr


def test_public_names():
    import llmc.runtime

    for name in llmc.runtime.__all__:
        assert getattr(llmc.runtime, name).__name__ == name


def test_weights_of_another_build(copy_of_tiny, build):
    build.write_weights(copy_of_tiny / "weights.bin", build.weights_payload(), build_id="f" * 64)
    with pytest.raises(
        LlmcError, match=r"belongs to another build: id ffffffffffff\.\.\., expected 0123456789ab"
    ):
        load(copy_of_tiny)


def test_large_weights_are_mapped_not_read(tmp_path, build):
    size = 90_000_000
    payload = build.weights_payload() + bytes(size - 128)
    build.compile_module(tmp_path / "module.so", payload=payload)
    build.write_weights(tmp_path / "weights.bin", payload)
    build.write_manifest(tmp_path)
    before = _bytes_read()
    load(tmp_path).close()
    assert _bytes_read() - before < 2_000_000


def _bytes_read() -> int:
    """What this process has read by system calls so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_an_artifact_that_replaced_another_is_loaded_anew(copy_of_tiny, build, expected):
    """Though the path is the one dlopen knows; the old model goes on by its own code."""
    with load(copy_of_tiny, threads=1) as old:
        own, new = "f" * 64, copy_of_tiny.with_name("new.llmc")
        shutil.copytree(copy_of_tiny, new)
        (new / "module.so").unlink()
        build.compile_module(new / "module.so", f'-DBUILD_ID="{own}"')
        build.write_weights(new / "weights.bin", build.weights_payload(), build_id=own)
        (new / "selftest.bin").unlink()
        build.write_manifest(new, build_id=own)
        copy_of_tiny.rename(copy_of_tiny.with_name("old.llmc"))
        new.rename(copy_of_tiny)
        for _ in range(2):
            with load(copy_of_tiny, threads=1) as model:
                assert model.manifest.build_id == own
                same(model(input_ids=IDS), expected(IDS))
        same(old(input_ids=IDS), expected(IDS))


def test_memory_bound(tiny, expected):
    """Of a model without states: what does not fit is refused, what fits runs."""
    with load(tiny, threads=1) as free:
        needed = free.memory_needed(batch=2, seq=3)
    assert (needed.weights, needed.states) == (128, 0)
    with load(tiny, threads=1, max_memory=needed.arena) as model:
        same(model(input_ids=IDS), expected(IDS))
        with pytest.raises(LlmcError, match="the sessions of the model would hold"):
            model(input_ids=np.ones((64, 512), int))
        same(model(input_ids=IDS), expected(IDS))
