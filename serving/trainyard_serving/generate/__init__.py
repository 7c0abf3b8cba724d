"""The text generation server: OpenAI's API over one exported language model."""
