"""MaCo (Huang et al., 2023)."""
