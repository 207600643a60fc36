"""The programs that run before a training job, and small data."""
