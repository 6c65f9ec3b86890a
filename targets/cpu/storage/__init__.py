"""Weights stored compressed: a file for each format says how a product reads it."""
