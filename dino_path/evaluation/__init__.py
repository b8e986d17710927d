"""Evaluation: labelled data, splits, k-NN, probes, the supervised baseline, metrics."""
