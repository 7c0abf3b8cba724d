"""Training data: corpora, tables and images, sampling, and the loader."""
