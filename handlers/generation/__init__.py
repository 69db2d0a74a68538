"""What generating operations share."""
