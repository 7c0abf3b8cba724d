"""What answers from checkpoints: web servers for the models that training runs export."""
