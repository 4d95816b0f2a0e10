"""Programs to copy from: train a model on a built data set, and let it describe pictures."""
