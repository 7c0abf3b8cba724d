"""The process group, DDP and FSDP, stopping on SIGTERM, and step times."""
