"""Predicts step time and memory of TPU programs, without a TPU."""
