"""Trained models in the formats that they are deployed in.

- `nxm.export.onnx.write_onnx`: ONNX in fp32, for any batch and length. Zeros stand in dense matrices.
- `nxm.export.onnx.write_int8`: ONNX with 8-bit weights and activations, for CPUs. Zeros stand in dense matrices.
- `nxm.export.x86.write_x86`: the same as PyTorch's own exported program, for x86 CPUs.
- `nxm.export.semi_structured.write_2of4`: bf16 or fp16, and which matrices are 2:4; `load_2of4` packs them for the
  2:4 kernels of a GPU, as they are or in 8-bit integers (`nxm.export.int8`).

    python -m nxm.export sparse-model model.onnx --to onnx

Every writer asserts first that the model keeps the pattern that its config.json claims, turns -0.0 into +0.0, runs
source and copy on real sentences, and writes nothing when their outputs differ by more than its stated tolerance.

There is no compressed checkpoint among them, that is one whose file leaves the zeros out: no maintained format has one.
compressed-tensors had `sparse-24-bitmask` and dropped it in 2026, as did vLLM and transformers (0.20 has the name and
no compressor), and PyTorch's packed tensors are laid out for one kind of GPU, so they are made when a model is loaded.
"""
