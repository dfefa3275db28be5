"""Sending a study elsewhere: as a Ray job, a SLURM job, or a RayJob on Kubernetes. One file per launcher."""
