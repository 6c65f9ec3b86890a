"""The structures of llmc.h that generate text, as ctypes sees them."""

from __future__ import annotations

from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_uint32,
    c_uint64,
    c_void_p,
)

Allow = CFUNCTYPE(c_int, c_void_p, POINTER(c_int64), c_int64, POINTER(c_uint32))
Guess = CFUNCTYPE(c_int64, c_void_p, POINTER(c_int64), c_int64, c_int64, POINTER(c_int64))


class Bias(Structure):
    """llmc_bias"""

    _fields_ = (("token", c_int64), ("bias", c_double))


class Place(Structure):
    """llmc_place"""

    _fields_ = (("index", c_int64), ("token", c_int64))


class ChoiceOptions(Structure):
    """llmc_choice_options"""

    _fields_ = (
        ("bias", POINTER(Bias)),
        ("n_bias", c_int64),
        ("repetition_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("stop", POINTER(c_int64)),
        ("n_stop", c_int64),
        ("min_new_tokens", c_int64),
        ("do_sample", c_int),
        ("temperature", c_double),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("min_p", c_double),
        ("typical_p", c_double),
        ("seed", c_uint64),
        ("no_repeat_ngram", c_int64),
        ("barred", POINTER(c_int64)),
        ("n_barred", c_int64),
        ("forced", POINTER(Place)),
        ("n_forced", c_int64),
        ("without", POINTER(Place)),
        ("n_without", c_int64),
        ("allowed", POINTER(c_uint32)),
    )


class GenerateOptions(Structure):
    """llmc_generate_options"""

    _fields_ = (
        ("function", c_char_p),
        ("tokens", c_char_p),
        ("keep", c_char_p),
        ("logits", c_char_p),
        ("choice", ChoiceOptions),
        ("max_new_tokens", c_int64),
        ("chunk", c_int64),
        ("lookup", c_int64),
        ("lookup_ngram", c_int64),
        ("logprobs", c_int),
        ("top_logprobs", c_int64),
        ("timeout", c_double),
        ("allow", Allow),
        ("guess", Guess),
        ("user", c_void_p),
        ("made", c_int64),
    )


class Token(Structure):
    """llmc_token"""

    _fields_ = (
        ("token", c_int64),
        ("index", c_int64),
        ("stops", c_int),
        ("logprob", c_double),
        ("n_top", c_int64),
        ("top", POINTER(c_int64)),
        ("top_logprobs", POINTER(c_double)),
    )


class GenerateReport(Structure):
    """llmc_generate_report"""

    _fields_ = (
        ("prompt_tokens", c_int64),
        ("cached_tokens", c_int64),
        ("new_tokens", c_int64),
        ("runs", c_int64),
        ("guessed", c_int64),
        ("accepted", c_int64),
        ("prompt_seconds", c_double),
        ("seconds", c_double),
        ("finish", c_int),
    )
