"""What the outside learns of a run while it goes on."""
