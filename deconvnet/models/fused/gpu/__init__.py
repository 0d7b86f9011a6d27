"""Operations of training steps on GPUs, compiled by Triton, which CUDA builds of torch bring along."""
