"""Detection on a frozen encoder: YOLOv3 as the papers use it, and ultralytics' one on the same pyramid."""
