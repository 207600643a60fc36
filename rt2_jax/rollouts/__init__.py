"""A policy tried in simulation: episodes, counts, films, a page."""
