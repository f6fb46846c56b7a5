"""Files on disk, each written whole or not at all: records, pictures, the cache."""
