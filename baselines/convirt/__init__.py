"""ConVIRT (Zhang et al., 2020)."""
