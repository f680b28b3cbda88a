"""MGCA (Wang et al., 2022)."""
