"""The container's boot on a rented pod: the workspace, the verdict on the GPU, and services that ask for a token or key."""
