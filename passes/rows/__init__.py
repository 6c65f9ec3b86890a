"""Passes that compute fewer rows: tokens that are padding, and those that nobody reads."""
