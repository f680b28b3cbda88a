"""G2D (Liu et al., NeurIPS 2024)."""
