"""Denoising of images with dictionaries learned from photographs, or from the image itself."""
