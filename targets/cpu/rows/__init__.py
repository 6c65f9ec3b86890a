"""Reductions over rows: norms, softmax, quantisation; and the moves to and from packed rows."""
