"""Export of trained models in formats for deployment.

- `nxm.export.onnx.write_onnx`: ONNX in fp32, for any batch and length; matrices are dense and contain the zeros.
- `nxm.export.onnx.write_int8`: ONNX with 8-bit weights and activations, for CPUs; matrices are dense likewise.
- `nxm.export.onnx.write_weight_only`: ONNX with trained integers as weights, in 4 or 8 bits, and fp32 arithmetic.
- `nxm.export.packed.write_packed`: trained integers as bits, without their zeros, for storage; `nxm.load` loads it.
- `nxm.export.x86.write_x86`: 8-bit weights and activations as a program of `torch.export`, for x86 CPUs.
- `nxm.export.semi_structured.write_2of4`: bf16 or fp16 with a list of the 2:4 matrices; `load_2of4` packs them for the
  2:4 kernels of a GPU, in half precision or in 8-bit integers (`nxm.export.int8`).

    nxm export sparse-model model.onnx --to onnx

Every writer first asserts that the model obeys the patterns that its config.json names and turns -0.0 into +0.0. It
then runs source and copy on real sentences and writes nothing if their outputs differ by more than its tolerance. It
never replaces what it did not write: files carry a mark, and the folder of `write_2of4` may hold nothing else.

Models without integers have no compressed checkpoint, whose file would omit the zeros: no maintained format offers one.
compressed-tensors had `sparse-24-bitmask` and dropped it in 2026, as did vLLM and transformers (0.20 has the name and
no compressor). PyTorch's packed tensors have the layout of one kind of GPU, so they are made when a model is loaded.
"""
