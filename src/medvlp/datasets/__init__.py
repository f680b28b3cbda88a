"""Released corpora to samples: one module per corpus."""
