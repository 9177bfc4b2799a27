"""Running one function over many cases, so that nothing is lost and nothing is done twice.

What lives here: the job (`jobs`) and its cases in order (`schedule`), which are run in this process
(`overlap`), in worker processes (`supervisor`, `process`, `worker`) or on a dask cluster
(`dask_engine`); why a worker is gone (`deaths`, `memory`), the step a case is in (`stages`), which
share of the cases is ours (`parts`), claims that let processes share a folder (`claims`), proof of
what was done (`receipts`), notes of what failed and what is to be done (`failures`, `announced`),
progress, signals, and threads. Nothing here knows what a case is beyond its name; torch is imported
only by `threads.limit_torch`.

Conventions: a case function takes one picklable payload and returns a `CaseResult`; it publishes
its output and then its receipt, and finds by its receipt that it has nothing to do.
"""
