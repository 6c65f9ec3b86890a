"""Element-wise chains, and ops that only move elements."""
