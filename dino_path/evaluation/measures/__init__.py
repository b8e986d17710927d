"""How good predictions are: confusion matrices, metrics, and their intervals over patients."""
