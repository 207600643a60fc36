"""From files to batches; the only place where TensorFlow is imported."""

import os

# TensorFlow decodes images and nothing else: no start-up chatter, and no
# second set of numerics.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
