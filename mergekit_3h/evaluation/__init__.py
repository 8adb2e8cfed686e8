"""What models do on data: their losses, and what they refuse."""
