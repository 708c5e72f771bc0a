"""The Ascend path with the real torch-npu on the emulated CANN. Without g++ or torch-npu these tests skip."""
