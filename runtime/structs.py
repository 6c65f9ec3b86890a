"""The structures of llmc.h as ctypes sees them."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_char, c_char_p, c_double, c_int, c_int64, c_ubyte, c_uint64, c_void_p

VERSION = 9
ERROR_CPU, ERROR_RANGE, ERROR_DEVICE = 5, 10, 12  # of llmc_status
MAX_RANK = 8
MAX_DIMS = 16
EXPRESSION = -(2**63)  # a size in TensorSpec.dims that the program computes
DTYPE_NAMES = ("?", "f32", "f16", "bf16", "i8", "u8", "i32", "i64", "bool", "f64")


class Error(Structure):
    """llmc_error"""

    _fields_ = (("status", c_int), ("message", c_char * 512), ("hint", c_char * 256))


class Options(Structure):
    """llmc_options"""

    _fields_ = (
        ("threads", c_int),
        ("pin", c_int),
        ("spin_us", c_int),
        ("skip_weights_check", c_int),
        ("variant", c_char_p),
        ("shared", c_void_p),
        ("max_memory", c_uint64),
    )


class DimInfo(Structure):
    """llmc_dim_info"""

    _fields_ = (("name", c_char_p), ("low", c_int64), ("high", c_int64))


class TensorSpec(Structure):
    """llmc_tensor_spec"""

    _fields_ = (
        ("name", c_char_p),
        ("dtype", c_int),
        ("rank", c_int),
        ("dims", c_int64 * MAX_RANK),
        ("dims_text", c_char_p * MAX_RANK),
        ("has_default", c_int),
        ("default_value", c_double),
        ("has_range", c_int),
        ("low", c_int64),
        ("high", c_int64),
    )


class StateSpec(Structure):
    """llmc_state_spec"""

    _fields_ = (
        ("name", c_char_p),
        ("dtype", c_int),
        ("rank", c_int),
        ("dims", c_int64 * MAX_RANK),
        ("dims_text", c_char_p * MAX_RANK),
        ("grows", c_int),
    )


class FunctionInfo(Structure):
    """llmc_function_info"""

    _fields_ = (
        ("name", c_char_p),
        ("n_inputs", c_int),
        ("n_outputs", c_int),
        ("n_steps", c_int),
        ("inputs", POINTER(TensorSpec)),
        ("outputs", POINTER(TensorSpec)),
        ("dims_used", POINTER(c_ubyte)),
        ("state_use", POINTER(c_ubyte)),
        ("batches", c_int),
        ("single", c_char_p),
    )


class Info(Structure):
    """llmc_info"""

    _fields_ = (
        ("name", c_char_p),
        ("build_id", c_char_p),
        ("variant", c_char_p),
        ("threads", c_int),
        ("n_dims", c_int),
        ("n_inputs", c_int),
        ("n_outputs", c_int),
        ("n_steps", c_int),
        ("dims", POINTER(DimInfo)),
        ("inputs", POINTER(TensorSpec)),
        ("outputs", POINTER(TensorSpec)),
        ("load_seconds", c_double),
        ("weights_bytes", c_uint64),
        ("n_functions", c_int),
        ("n_states", c_int),
        ("functions", POINTER(FunctionInfo)),
        ("states", POINTER(StateSpec)),
        ("n_adapters", c_int),
        ("adapters", POINTER(c_char_p)),
    )


Shape = c_int64 * MAX_RANK


class Tensor(Structure):
    """llmc_tensor"""

    _fields_ = (("data", c_void_p), ("dtype", c_int), ("rank", c_int), ("shape", Shape))


class SessionOptions(Structure):
    """llmc_session_options"""

    _fields_ = (
        ("threads", c_int),
        ("pin", c_int),
        ("spin_us", c_int),
        ("shared", c_void_p),
        ("max_memory", c_uint64),
        ("adapter", c_char_p),
    )


class RunOptions(Structure):
    """llmc_run_options"""

    _fields_ = (("timeout", c_double), ("discard", c_int))


class Member(Structure):
    """llmc_member"""

    _fields_ = (("session", c_void_p), ("sizes", c_int64 * MAX_DIMS))


class SessionReport(Structure):
    """llmc_session_report"""

    _fields_ = (
        ("threads", c_int),
        ("sizes", c_int64 * MAX_DIMS),
        ("arena_bytes", c_uint64),
        ("state_bytes", c_uint64),
        ("adapter", c_int),
        ("shared_bytes", c_uint64),
    )


class Memory(Structure):
    """llmc_memory"""

    _fields_ = (("weights", c_uint64), ("arena", c_uint64), ("states", c_uint64))


class Summary(Structure):
    """llmc_summary; seconds"""

    _fields_ = (
        ("n", c_int64),
        ("mean", c_double),
        ("mean_low", c_double),
        ("mean_high", c_double),
        ("p50", c_double),
        ("p90", c_double),
        ("p95", c_double),
        ("p99", c_double),
        ("min", c_double),
        ("max", c_double),
    )


class Ratio(Structure):
    """llmc_ratio"""

    _fields_ = (("n", c_int64), ("ratio", c_double), ("low", c_double), ("high", c_double))


class BenchmarkOptions(Structure):
    """llmc_benchmark_options"""

    _fields_ = (
        ("seconds", c_double),
        ("max_runs", c_int64),
        ("warmup", c_int64),
        ("seed", c_uint64),
        ("shortest", c_int64),
        ("function", c_int),
    )


class StepReport(Structure):
    """llmc_step_report"""

    _fields_ = (
        ("kernel", c_char_p),
        ("source", c_char_p),
        ("seconds", c_double),
        ("flops", c_double),
        ("bytes", c_double),
    )


class Report(Structure):
    """llmc_benchmark_report"""

    _fields_ = (
        ("sizes", c_int64 * MAX_DIMS),
        ("warmup_runs", c_int64),
        ("latency", Summary),
        ("runs_per_second", c_double),
        ("load_seconds", c_double),
        ("peak_memory_bytes", c_uint64),
        ("flops", c_double),
        ("bytes", c_double),
        ("peak_flops_per_second", c_double),
        ("peak_bytes_per_second", c_double),
    )
