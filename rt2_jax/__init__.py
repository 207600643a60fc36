"""RT-2 in JAX."""
