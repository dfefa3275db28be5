"""Random augmentations of a batch: what they draw for each image, and how they change the images."""
