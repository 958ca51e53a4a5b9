"""What runs, in which order, where and at what price. Nothing in this package imports torch, ray or ffcv."""
