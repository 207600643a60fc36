"""The same policy with torch and transformers, without JAX."""
