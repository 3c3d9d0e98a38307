"""What the processors of all families share."""
