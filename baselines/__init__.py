"""Pre-training methods as plug-ins: each folder uses only medvlp's public API and one entry-point line."""
