"""Trackers, one module each: TensorBoard, MLflow, and Weights & Biases.

`feed` reads the records and passes new reports on to them."""
