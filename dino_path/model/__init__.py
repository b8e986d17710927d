"""Model: timm backbone, projection head, loading weights."""
