"""The vision server: fetches an image safely and asks a model on SGLang about it."""
