"""The process group, DDP and FSDP, stopping together, and step times."""
