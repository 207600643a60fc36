"""What a compiled TPU program costs, on slices that are not here."""
