"""Launchers that run a study on a cluster: as a Ray job, as a SLURM job, or as a RayJob on Kubernetes.

Each launcher is one module; `common` holds what they share."""
