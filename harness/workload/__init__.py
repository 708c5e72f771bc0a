"""What every device must do identically: model, data, optimizer, schedule and the proofs of sameness."""
