"""The text classification server of one exported model."""
