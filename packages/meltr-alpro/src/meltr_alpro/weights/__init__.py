"""Read and write published weights."""
