"""dino_path: self-supervised DINO pretraining for medical histology."""

__version__ = "0.4.0.dev0"
