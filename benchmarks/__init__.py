"""Measured beside what people use today: ``python -m benchmarks``, on a CPU or a GPU.

__main__        the command line: run, report, compare
cases           what is measured: shapes, dtypes, passes, dropouts
providers       who is measured: rnndrop, nn.RNN, loops; `others` adapts libraries that may be installed
limits          what cannot be beaten: the bare matrix products, and the device's measured rates
check           a provider is shown to be right before it is timed
timer           contenders alternate; CPU clock or CUDA events
memory          bytes saved for the backward pass, peak on CUDA
runner          the loop over cases: resumes, keeps within its minutes, writes a row at once
results         rows.csv and environment.json
model           launches, bytes and operations of the CUDA strategies, and bounds from data sheets
analysis        ratios, growth, contradictions of "auto", out of rows
charts, report  pictures, report.md, report.html
compare         what got faster or slower between two results
test_speed      the same cases for pytest-benchmark

launches, kernel_costs, resources   what the kernels cost, counted without a GPU
"""
