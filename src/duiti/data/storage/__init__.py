"""Examples on disk: columns, the store over them, and the cache that keeps them."""
