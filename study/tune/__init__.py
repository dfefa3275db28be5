"""Running trials on Ray: the pipeline of stages, Ray Tune, DDP, the connection to a cluster and its free slots."""
