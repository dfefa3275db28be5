"""Run trials on Ray: the connection to a cluster, its trial slots, Ray Tune, and distributed training with Ray Train.

`pipeline` opens and closes the stages as their dependencies finish."""
