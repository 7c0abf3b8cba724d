"""Where models come from: locations, verified copies, and the thread that follows new ones."""
