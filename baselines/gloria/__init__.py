"""GLoRIA (Huang et al., 2021)."""
