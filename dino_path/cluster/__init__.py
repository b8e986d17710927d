"""Cluster: sbatch files and their submission."""
