"""``lit-extract review``: a local page on which a person reads captions beside their images, and mends them."""
