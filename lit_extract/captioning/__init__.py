"""Captioning of images: captioner, engines, parts, output."""
