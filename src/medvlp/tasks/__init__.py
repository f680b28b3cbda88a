"""Downstream and zero-shot tasks: what a pre-trained encoder is judged by."""
