"""The watchdog: detects a hang and names the rank that causes it."""
