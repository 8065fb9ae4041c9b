"""What is on disk or on a server: stores, features files, and finalize, which makes one of the other."""
