"""Operations of training steps on CPUs, compiled by numba."""
