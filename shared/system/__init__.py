"""What is asked of the interpreter, the kernel and the file system: processes, forks, garbage, small files."""
