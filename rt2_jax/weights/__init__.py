"""Reads, writes and verifies public formats of the same weights."""
