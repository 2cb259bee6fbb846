"""What one client does in a round, and what may be put around it."""
