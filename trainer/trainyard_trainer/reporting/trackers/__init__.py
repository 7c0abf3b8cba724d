"""Trackers: MLflow and TensorBoard, each written by a separate process."""
