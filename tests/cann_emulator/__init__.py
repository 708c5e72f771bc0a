"""A CANN that computes on the CPU, for testing the Ascend path with the real torch-npu and without a device."""
