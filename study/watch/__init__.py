"""Progress of a study: the live display of `kdstudy run`, and `kdstudy status`, which reads the study folder.

`trackers` sends curves to TensorBoard, MLflow and Weights & Biases."""
