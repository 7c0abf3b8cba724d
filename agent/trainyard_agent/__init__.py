"""Starts and watches one worker. Only the standard library, so that it runs in any image."""
