"""Where a layer is computed: on the CPU, by Triton's kernels, or by the plain loop. None knows of the others."""
