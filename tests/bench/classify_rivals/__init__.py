"""Other ways to serve the same classifier, for classify_serving.py."""
