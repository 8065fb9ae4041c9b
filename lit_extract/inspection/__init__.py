"""What is in a folder, and whether it is sound."""
