"""Measured beside what people use today: ``python -m benchmarks``, on a CPU or a GPU.

__main__        the command line: run, report, compare
report/         write: report.md, pictures and report.html out of a result folder
    analysis        ratios, growth, contradictions of "auto", out of rows
    charts          the pictures
    sections        what a report says
    markdown, page  report.md and report.html
    compare         what got faster or slower between two results
measure/
    runner          the loop over cases: resumes, keeps within its minutes, writes a row at once
    prepare         a contender of a case is built, checked, and made ready to be timed
    check           a contender is shown to be right before it is timed
    oracle          what a case must give, in float64
    session         where and how a run measures
    timer           contenders alternate; CPU clock or CUDA events
    graph           a step as a CUDA graph
    memory          bytes saved for the backward pass, peak on CUDA
    rates           the device's measured rates of copying and multiplying
    results         rows.csv and environment.json
    machine         the machine and the software
contenders/     who is measured: EVERYONE
    base            what a contender is
    ours, torch_nn, loops, keras
    kernels         haste and FlashRNN, on CUDA
    products        what cannot be beaten: the bare matrix products
cases           what is measured: shapes, dtypes, passes, dropouts
test_speed      the same cases for pytest-benchmark

Nothing imports what stands above it here.
"""
