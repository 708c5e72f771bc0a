"""CANN emulated on the CPU, to test the Ascend path with the real torch-npu and without a device."""
