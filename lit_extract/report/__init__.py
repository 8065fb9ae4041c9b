"""``lit-extract report``: a page to look at features before trusting them."""
