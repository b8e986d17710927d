"""The supervised network that every frozen extractor is compared with, trained on the same splits."""
