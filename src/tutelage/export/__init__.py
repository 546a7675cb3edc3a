"""The student as it will run: ONNX, int8, mobile; an artefact with its hashes, and parity with the trained student."""
