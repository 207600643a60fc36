"""One file for each number that is reported."""
