"""Other people's formats of the same weights, read, written and proven."""
