"""Memory of a training step on one GPU, and what makes it fit."""
