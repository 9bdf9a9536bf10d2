"""The second host: PyTorch. All that imports torch, beside the folder of the host arcface_torch.

Nothing here imports MXNet, directly or not; torch comes from `torch_setup` and nowhere else.
"""
