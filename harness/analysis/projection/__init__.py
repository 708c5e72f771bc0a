"""A large training run, estimated from the speed of one device."""
