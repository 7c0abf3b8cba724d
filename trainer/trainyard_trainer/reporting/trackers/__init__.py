"""MLflow and TensorBoard, fed by a process of their own."""
