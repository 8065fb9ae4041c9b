"""Storage on disk or on a server: stores, features files, and finalize, which turns stores into files."""
