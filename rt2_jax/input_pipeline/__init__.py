"""From files to batches: TFRecords without TensorFlow."""
