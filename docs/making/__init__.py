"""What the documentation site is made with; none of it is needed to train."""
