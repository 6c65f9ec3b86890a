"""Attention: float32 and int8, padded and ragged."""
