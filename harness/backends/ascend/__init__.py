"""Reading what an Ascend host says of itself, without torch."""
