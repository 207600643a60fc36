"""Updates of matrices that optax does not have."""
