"""The vision server: fetches a picture safely and asks a model on SGLang about it."""
