"""Lossy passes that make weights smaller, and what they share."""
