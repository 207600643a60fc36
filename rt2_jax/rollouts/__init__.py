"""Rollouts of a policy in simulation: trials, counts, films, a report."""
