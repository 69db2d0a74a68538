"""C++ decoder kernels for CPUs and their Python bindings. They are compiled at install time if a compiler is found."""
