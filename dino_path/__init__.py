"""dino_path: self-supervised DINO pretraining for medical histology."""

__version__ = "0.1.0"
