"""What is written to disk, whole or not at all: files, records, pictures, the cache."""
