"""From images to captions: captioner, engines, parts, output."""
