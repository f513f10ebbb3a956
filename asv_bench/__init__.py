"""Benchmarks: `benchmarks/` is what asv runs, `python -m asv_bench.targets` measures the speeds that keepnorm promises."""
