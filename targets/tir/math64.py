"""log, pow, sin and cos of float32, computed in float64: rare in models, so accuracy comes first.

As in `math`, every multiply that feeds an add is an explicit fma and nothing calls libm.
"""

from __future__ import annotations

from llmc.targets.tir.emit import Emitter, Expr, fma, i64, lanes_of, splat, vector
from llmc.targets.tir.later import tirx
from llmc.targets.tir.math import clamp, polynomial

_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD


def _f64(value: float, lanes: int) -> Expr:
    return splat(tirx.FloatImm("float64", value), lanes)


def _horner(k: Emitter, x: Expr, coefficients: tuple[float, ...]) -> Expr:
    lanes = lanes_of(x)
    value = _f64(coefficients[0], lanes)
    for c in coefficients[1:]:
        value = k.let(fma(value, x, _f64(c, lanes)))
    return value


def _wide(k: Emitter, x: Expr) -> Expr:
    return k.let(tirx.Cast(vector("float64", lanes_of(x)), x))


def _narrow(k: Emitter, x: Expr) -> Expr:
    return k.let(tirx.Cast(vector("float32", lanes_of(x)), x))


def _log64(k: Emitter, x: Expr) -> Expr:
    """log of a positive, finite, normal float64, to 1e-12.

    x = 2**n m with m in sqrt(1/2)..sqrt(2); log m = 2 artanh(s), s = (m - 1) / (m + 1), by its series.
    """
    lanes = lanes_of(x)
    bits = k.let(tirx.reinterpret(vector("int64", lanes), x))
    n = k.let(tirx.shift_right(bits - splat(i64(_SQRT_HALF_BITS), lanes), splat(i64(52), lanes)))
    m = k.let(tirx.reinterpret(vector("float64", lanes), bits - tirx.shift_left(n, splat(i64(52), lanes))))
    one = _f64(1.0, lanes)
    s = k.let((m - one) / (m + one))
    series = _horner(k, k.let(s * s), (1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0))
    n = k.let(tirx.Cast(vector("float64", lanes), tirx.Cast(vector("int32", lanes), n)))
    return k.let(fma(k.let(s + s), series, k.let(n * _f64(0.6931471805599453, lanes))))


def _exp64(k: Emitter, x: Expr) -> Expr:
    """e**x of a float64 in -150..150 to 1e-12; NaN stays."""
    lanes = lanes_of(x)
    n = k.let(tirx.floor(fma(x, _f64(1.4426950408889634, lanes), _f64(0.5, lanes))))
    r = k.let(fma(n, _f64(-0.6931471805599453, lanes), x))
    p = _horner(k, r, (1 / 362880, 1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0))
    ints = tirx.Cast(vector("int64", lanes), tirx.Cast(vector("int32", lanes), n))
    bits = tirx.shift_left(ints + splat(i64(1023), lanes), splat(i64(52), lanes))
    return k.let(p * tirx.reinterpret(vector("float64", lanes), bits))


def log(k: Emitter, x: Expr) -> Expr:
    """Natural logarithm; -inf at 0, NaN below."""
    lanes = lanes_of(x)
    zero, inf = splat(0.0, lanes), splat(float("inf"), lanes)
    y = _narrow(k, _log64(k, _wide(k, x)))
    y = tirx.Select(x < inf, y, inf)
    outside = tirx.Select(tirx.EQ(x, zero), splat(float("-inf"), lanes), splat(float("nan"), lanes))
    return k.let(tirx.Select(x > zero, y, outside))


def pow(k: Emitter, x: Expr, y: Expr) -> Expr:
    """x**y with the special cases of C's pow."""
    lanes = lanes_of(x)
    zero, one, inf = (splat(v, lanes) for v in (0.0, 1.0, float("inf")))
    size = k.let(tirx.abs(x))
    log_size = _log64(k, _wide(k, size))
    log_size = tirx.Select(tirx.EQ(size, zero), _f64(float("-inf"), lanes), log_size)
    log_size = k.let(tirx.Select(tirx.EQ(size, inf), _f64(float("inf"), lanes), log_size))
    t = k.let(_wide(k, y) * log_size)
    t = k.let(tirx.max(_f64(-150.0, lanes), tirx.min(_f64(150.0, lanes), t)))
    result = k.let(tirx.Select(tirx.EQ(size, one), one, _narrow(k, _exp64(k, t))))
    result = k.let(tirx.Select(tirx.EQ(x, x), result, x))
    whole = k.let(tirx.EQ(tirx.floor(y), y))
    half = k.let(y * splat(0.5, lanes))
    odd = tirx.bitwise_and(whole, tirx.NE(tirx.floor(half), half))
    bits = tirx.reinterpret(vector("int32", lanes), x)
    signed = tirx.bitwise_and(odd, bits < splat(tirx.const(0, "int32"), lanes))
    result = k.let(tirx.Select(signed, result * splat(-1.0, lanes), result))
    finite_negative = tirx.bitwise_and(x < zero, x > splat(float("-inf"), lanes))
    undefined = tirx.bitwise_and(finite_negative, tirx.Not(whole))
    result = tirx.Select(undefined, splat(float("nan"), lanes), result)
    return k.let(tirx.Select(tirx.bitwise_or(tirx.EQ(y, zero), tirx.EQ(x, one)), one, result))


def sin(k: Emitter, x: Expr) -> Expr:
    """sin(x), good to a few ulp for |x| up to 1e15."""
    return _sine(k, x, 0)


def cos(k: Emitter, x: Expr) -> Expr:
    """cos(x) = sin(x + pi/2), good to a few ulp for |x| up to 1e15."""
    return _sine(k, x, 1)


def _sine(k: Emitter, x: Expr, quarter: int) -> Expr:
    """sin(x + quarter pi/2): x = n pi/2 + r, |r| <= pi/4, in float64; Cephes' sinf and cosf polynomials."""
    lanes = lanes_of(x)
    wide = _wide(k, x)
    n = k.let(tirx.floor(fma(wide, _f64(0.6366197723675814, lanes), _f64(0.5, lanes))))
    r = k.let(fma(n, _f64(-1.5707963267948966, lanes), wide))
    r = _narrow(k, k.let(fma(n, _f64(-6.123233995736766e-17, lanes), r)))
    r = k.let(clamp(r, -0.79, 0.79))  # keeps the result within -1..1 where x is beyond reduction
    n = k.let(fma(tirx.floor(n * _f64(0.25, lanes)), _f64(-4.0, lanes), n))
    ints = tirx.Cast(vector("int32", lanes), n)
    turn = k.let(ints + splat(tirx.const(quarter, "int32"), lanes))
    u = k.let(r * r)
    sine = polynomial(k, u, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
    sine = k.let(fma(k.let(sine * u), r, r))
    cosine = polynomial(k, u, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2, -0.5))
    cosine = k.let(fma(cosine, u, splat(1.0, lanes)))
    value = k.let(tirx.Select(_bit(turn, 1, lanes), cosine, sine))
    return k.let(tirx.Select(_bit(turn, 2, lanes), value * splat(-1.0, lanes), value))


def _bit(value: Expr, bit: int, lanes: int) -> Expr:
    mask = tirx.bitwise_and(value, splat(tirx.const(bit, "int32"), lanes))
    return tirx.NE(mask, splat(tirx.const(0, "int32"), lanes))


def copysign(k: Emitter, size: Expr, sign: Expr) -> Expr:
    """The float32 `size`, not negative and computed, with the sign bit of `sign`."""
    lanes = lanes_of(size)
    ints = vector("int32", lanes)
    joined = tirx.bitwise_or(tirx.reinterpret(ints, size), _sign_bit(sign))
    return k.let(tirx.reinterpret(vector("float32", lanes), joined))


def signed_zero(k: Emitter, sign: Expr) -> Expr:
    """0 or -0, by the sign bit of `sign`: `copysign` would want the address of a number that is written out in CUDA."""
    return k.let(tirx.reinterpret(vector("float32", lanes_of(sign)), _sign_bit(sign)))


def _sign_bit(value: Expr) -> Expr:
    lanes = lanes_of(value)
    ints = tirx.reinterpret(vector("int32", lanes), value)
    return tirx.bitwise_and(ints, splat(tirx.const(-(2**31), "int32"), lanes))


def difference(k: Emitter, a: Expr, b: Expr) -> Expr:
    """a - b of float32 by way of float64."""
    return _narrow(k, k.let(_wide(k, a) - _wide(k, b)))


def fmod(k: Emitter, a: Expr, b: Expr) -> Expr:
    """The exact remainder of a / b truncated, signed as a; NaN for b = 0 or infinite a, a for infinite b.

    Long division with digits of 24 bits: r - q b is exact in float64 when q has at most 24 bits.
    Twelve digits cover the largest quotient of two float32, 2**277.
    """
    lanes = lanes_of(a)
    wide, divisor = _wide(k, a), _wide(k, b)
    rest = k.registers(1, vector("float64", lanes))
    k.set(rest, 0, wide)
    with k.loop(0, 12):
        r = k.let(k.get(rest))
        q = k.let(tirx.reinterpret(vector("int64", lanes), r / divisor))
        q = tirx.bitwise_and(q, splat(i64(-(1 << 29)), lanes))
        q = k.let(tirx.trunc(tirx.reinterpret(vector("float64", lanes), q)))
        k.set(rest, 0, fma(q * _f64(-1.0, lanes), divisor, r))
    result = _narrow(k, k.let(k.get(rest)))
    infinite = tirx.EQ(tirx.abs(b), splat(float("inf"), lanes))
    finite = tirx.abs(a) < splat(float("inf"), lanes)
    return copysign_of(k, tirx.Select(tirx.bitwise_and(infinite, finite), a, result), a)


def copysign_of(k: Emitter, value: Expr, sign: Expr) -> Expr:
    """|value| with the sign bit of `sign`."""
    return copysign(k, k.let(tirx.abs(value)), sign)
