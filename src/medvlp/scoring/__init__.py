"""From embeddings to answers: class scores from prompts, heatmaps from phrases. Pure functions of tensors."""
