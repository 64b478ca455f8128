"""The engine contract: devices, buffers and engines; a dry run and a fake of them."""
