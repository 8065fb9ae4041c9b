"""Captioning: from replies to one file, and what people do with it afterwards."""
