"""How far a study is: the live display, `kdstudy status`, and trackers such as TensorBoard."""
