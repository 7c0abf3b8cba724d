"""The text classification server: the class of a text, by one exported model."""
