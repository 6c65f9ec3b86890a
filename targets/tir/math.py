"""Transcendental functions as polynomials over vectors: the same bits on every CPU, no libm.

Every multiply that feeds an add is an explicit fma, so nothing is left to contraction. Divisions and square
roots are IEEE exact. All functions take and return a float32 vector (or scalar) expression.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.ops.elementwise import GELU_LIMIT, GELU_POLY
from llmc.compiler.ops.int8_attention import LOG2_E, ROUND
from llmc.targets.tir.emit import Emitter, Expr, f32, fma, lanes_of, splat, vector
from llmc.targets.tir.later import tirx

# 2**r, highest power first, |r| <= 1/2: minimax in the relative error, 2e-9, with a last term of exactly 1
_EXP2 = (
    1.535336196e-4,
    1.339887502e-3,
    9.618436918e-3,
    5.550332367e-2,
    2.402264774e-1,
    6.931471825e-1,
    1.0,
)


def polynomial(k: Emitter, x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule, highest power first."""
    lanes = lanes_of(x)
    value = splat(f32(coefficients[0]), lanes)
    for c in coefficients[1:]:
        value = k.let(fma(value, x, splat(f32(c), lanes)))
    return value


def clamp(x: Expr, low: float, high: float) -> Expr:
    """`x` limited to low..high; NaN stays, as a comparison with it is false and picks the second operand."""
    lanes = lanes_of(x)
    return tirx.max(splat(low, lanes), tirx.min(splat(high, lanes), x))


def exp(k: Emitter, x: Expr) -> Expr:
    """e**x, 1 ulp or so; 0 below -87.3, where float32 turns subnormal, inf above 88.7; NaN stays.

    Cody and Waite range reduction, x = n ln2 + r, with the degree-5 polynomial of Cephes' expf.
    """
    lanes = lanes_of(x)
    top = k.let(clamp(x, -88.0, 88.72))
    n = k.let(tirx.floor(fma(top, splat(LOG2_E, lanes), splat(0.5, lanes))))
    r = k.let(fma(n, splat(-0.693359375, lanes), top))
    r = k.let(fma(n, splat(2.12194440e-4, lanes), r))
    p = polynomial(
        k,
        r,
        (
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ),
    )
    y = k.let(fma(k.let(p * r), r, k.let(r + splat(1.0, lanes))))
    # 2**n in two halves: n may be 128, one more than a float's exponent holds.
    ints = k.let(tirx.Cast(vector("int32", lanes), n))
    half = k.let(tirx.shift_right(ints, splat(tirx.const(1, "int32"), lanes)))
    y = k.let(y * _power_of_two(half, lanes))
    y = k.let(y * _power_of_two(k.let(ints - half), lanes))
    y = k.let(tirx.Select(x < splat(-87.33654, lanes), splat(0.0, lanes), y))
    return k.let(tirx.Select(x > splat(88.72283, lanes), splat(float("inf"), lanes), y))


def exp_down(k: Emitter, x: Expr) -> Expr:
    """e**x for x <= 1: `exp2_down` of the rounded x log2(e)."""
    return exp2_down(k, k.let(x * splat(LOG2_E, lanes_of(x))))


def exp2_down(k: Emitter, x: Expr) -> Expr:
    """2**x for x <= 1, as softmax needs it, 1 ulp or so; 0 at -127 and below; NaN stays.

    x = n + r, and 2**x = 2**n 2**r. Adding 1.5 * 2**23 rounds x to n and leaves n in the last bits; these, shifted to
    where the exponent is, multiply by 2**n. At -127, 2**r is 1, of whose bits they leave 0.
    """
    return exp2_of(k, k.let(tirx.max(splat(-127.0, lanes_of(x)), x)), _EXP2)


def exp2_of(k: Emitter, x: Expr, coefficients: Sequence[float]) -> Expr:
    """2**x for -127 <= x <= 1, with the polynomial of 2**r, |r| <= 1/2, highest power first."""
    lanes = lanes_of(x)
    shifted = k.let(x + splat(ROUND, lanes))
    n = k.let(shifted - splat(ROUND, lanes))
    power = k.let(polynomial(k, k.let(x - n), coefficients))
    bits = [k.let(tirx.reinterpret(vector("int32", lanes), v)) for v in (power, shifted)]
    exponent = tirx.shift_left(bits[1], splat(tirx.const(23, "int32"), lanes))
    return k.let(tirx.reinterpret(vector("float32", lanes), k.let(bits[0] + exponent)))


def _power_of_two(n: Expr, lanes: int) -> Expr:
    """2**n for int32 n in -126..127, by writing the exponent field."""
    bits = tirx.shift_left(n + splat(tirx.const(127, "int32"), lanes), splat(tirx.const(23, "int32"), lanes))
    return tirx.reinterpret(vector("float32", lanes), bits)


_TANH_LIMIT = 9.0  # where the quotient, as rounded, is exactly 1
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def tanh(k: Emitter, x: Expr) -> Expr:
    """tanh(x) to 4 ulp or so: the 13/6 rational minimax approximation used by Eigen, exact +-1 beyond 9."""
    t = k.let(clamp(x, -_TANH_LIMIT, _TANH_LIMIT))
    u = k.let(t * t)
    return k.let(k.let(t * polynomial(k, u, _TANH_P)) / polynomial(k, u, _TANH_Q))


_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def _erf_clamped(k: Emitter, t: Expr) -> Expr:
    """erf(t) for |t| <= 4, where it reaches 1: the rational minimax approximation used by Eigen and XLA."""
    u = k.let(t * t)
    return k.let(k.let(t * polynomial(k, u, _ERF_P)) / polynomial(k, u, _ERF_Q))


def erf(k: Emitter, x: Expr) -> Expr:
    """erf(x) to a few ulp, exact +-1 beyond 4."""
    return _erf_clamped(k, k.let(clamp(x, -4.0, 4.0)))


def sigmoid(k: Emitter, x: Expr) -> Expr:
    """1 / (1 + e**-x)"""
    lanes = lanes_of(x)
    one = splat(1.0, lanes)
    return k.let(one / k.let(one + exp(k, k.let(x * splat(-1.0, lanes)))))


def silu(k: Emitter, x: Expr) -> Expr:
    """x / (1 + e**-x), a quotient so that no product feeds a sum that follows; 0 at -inf."""
    lanes = lanes_of(x)
    # beyond -88.7 the divisor is inf: the limit only keeps -inf / inf away
    top = k.let(tirx.max(splat(-1e30, lanes), x))
    return k.let(top / k.let(splat(1.0, lanes) + exp(k, k.let(x * splat(-1.0, lanes)))))


def gelu(k: Emitter, x: Expr) -> Expr:
    """x/2 * (1 + erf(x / sqrt 2)); 0 at -inf."""
    lanes = lanes_of(x)
    root = splat(0.70710678118654752, lanes)
    # One lower limit serves erf and the factor x/2 = t / sqrt 2: below it erf is -1 and the result 0.
    t = k.let(tirx.max(splat(-4.0, lanes), x * root))
    half = k.let(t * root)
    return k.let(fma(half, _erf_clamped(k, k.let(tirx.min(splat(4.0, lanes), t))), half))


def gelu_poly(k: Emitter, x: Expr) -> Expr:
    """`gelu` to 5e-4 without a quotient: x/2 + x (x P(x**2)), x limited; next to 0 at -inf."""
    lanes = lanes_of(x)
    x = k.let(tirx.max(splat(-GELU_LIMIT, lanes), x))
    t = k.let(tirx.min(splat(GELU_LIMIT, lanes), x))
    odd = k.let(t * polynomial(k, k.let(t * t), GELU_POLY))
    return k.let(fma(x, odd, k.let(x * splat(0.5, lanes))))


def gelu_tanh(k: Emitter, x: Expr) -> Expr:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3))); 0 at -inf."""
    lanes = lanes_of(x)
    x = k.let(tirx.max(splat(-10.0, lanes), x))  # tanh is -1 there
    # x * (a + b x**2), a = sqrt(2/pi), b = 0.044715 a
    scale = k.let(fma(k.let(x * x), splat(0.035677408136300125, lanes), splat(0.79788456080286536, lanes)))
    half = k.let(x * splat(0.5, lanes))
    return k.let(fma(half, tanh(k, k.let(x * scale)), half))


def relu(k: Emitter, x: Expr) -> Expr:
    """max(x, 0); NaN stays, -0 becomes 0."""
    zero = splat(0.0, lanes_of(x))
    return k.let(tirx.Select(x <= zero, zero, x))


def to_byte(k: Emitter, x: Expr, inverse: Expr, zero: int) -> Expr:
    """`to_level` + zero as uint8, for zero in 0..128.

    1.5 * 2**23 + zero has an ulp of 1, so adding it rounds half to even as `roundeven` does, and leaves the sum's last
    8 bits in those of the significand.
    """
    lanes = lanes_of(x)
    scaled = k.let(tirx.min(k.let(x * inverse), splat(127.0, lanes)))
    scaled = k.let(tirx.max(scaled, splat(-127.0, lanes)))
    shifted = k.let(scaled + splat(1.5 * 2.0**23 + zero, lanes))
    return k.let(tirx.Cast(vector("uint8", lanes), tirx.reinterpret(vector("int32", lanes), shifted)))


def to_level(k: Emitter, x: Expr, inverse: Expr, limit: float = 127.0) -> Expr:
    """x * inverse as int32, rounded half to even, limited to -limit..limit; NaN gives `limit`."""
    lanes = lanes_of(x)
    # a comparison with NaN is false and picks the second operand
    scaled = k.let(tirx.min(k.let(x * inverse), splat(limit, lanes)))
    scaled = k.let(tirx.max(scaled, splat(-limit, lanes)))
    rounded = tirx.call_llvm_pure_intrin(vector("float32", lanes), "llvm.roundeven", scaled)
    return k.let(tirx.Cast(vector("int32", lanes), rounded))


def to_level_around(k: Emitter, x: Expr, scale: Expr, zero: Expr, low: int) -> Expr:
    """x / scale + zero as int32, the quotient rounded half to even, within low..low + 255; NaN gives low + 255."""
    lanes = lanes_of(x)
    near = tirx.call_llvm_pure_intrin(vector("float32", lanes), "llvm.roundeven", k.let(x / scale))
    level = k.let(k.let(near) + zero)
    held = k.let(tirx.min(level, splat(float(low + 255), lanes)))
    held = k.let(tirx.max(held, splat(float(low), lanes)))
    return k.let(tirx.Cast(vector("int32", lanes), held))


def relu6(k: Emitter, x: Expr) -> Expr:
    return k.let(clamp(x, 0.0, 6.0))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_poly": gelu_poly,
    "relu": relu,
    "relu6": relu6,
    "tanh": tanh,
    "silu": silu,
    "sigmoid": sigmoid,
}
SHORT = frozenset({"relu", "relu6"})  # of an instruction or two
