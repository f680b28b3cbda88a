"""Encoders: plain modules over timm, Hugging Face and segmentation-models-pytorch."""
