"""What a configuration says, and how its words are read."""
