"""Image encoders as they are before any pre-training: the floor of every table."""
