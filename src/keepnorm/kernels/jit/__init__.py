"""From a kernel to a call: compilation, object code on disk, linking, threads."""
