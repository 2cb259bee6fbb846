"""Programs, processes and devices, and how they start and end."""
