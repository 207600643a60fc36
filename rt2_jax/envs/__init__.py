"""Environments in which a robot can be tried."""
