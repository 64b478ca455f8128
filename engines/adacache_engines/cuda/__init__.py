"""An NVIDIA GPU through the CUDA runtime: its stream, memory and graphs."""
