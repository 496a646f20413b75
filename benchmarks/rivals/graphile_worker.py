"""graphile-worker 0.18: Node.js, a local queue filled by one fetch, completions in batches.

By its documentation: "Performance" (localQueue.size 500, completeJobBatchDelay and failJobBatchDelay 0, a pool of more
than concurrentJobs + 2, since the tasks use it) and "SQL add_job()": a call in the writer's transaction, add_jobs() for
many. Jobs are deleted when they succeed.

De-duplication ("Job key"): one waiting job a key; one that runs loses its key, and a new job is added, so no event is
lost. Writers of one pupil wait for each other, and so does the job for them. job_key_mode `preserve_run_at`, for under
`replace` each event would move its job to the end of the queue. (`unsafe_dedupe` is what its name says.)
Not measured: the merging of array payloads under one job_key for all pupils, where every writer waits for every other.
"""

from benchmarks.rivals.system import ALL, ALL_DIFFERENT, INSTALLED, System, node

CONNECTIONS = 10

ADD_JOB = """
    perform graphile_worker.add_job(
        'recalculate', json_build_object('student_id', p_key), job_key := {job_key}, job_key_mode := 'preserve_run_at'
    );
"""
ADD_JOBS = """
    select count(*) from graphile_worker.add_jobs(array(
        select row('recalculate', json_build_object('student_id', b.key), null, null, null, {job_key}, null, null)
            ::graphile_worker.job_spec
        from {source}
    ), true)
"""


def _system(name: str, one: str, every: str, *, dedupes: bool) -> System:
    worker = (node(), str(INSTALLED / "node_modules/graphile-worker/dist/cli.js"), "--config", "graphile.config.mjs")
    return System(
        name=name,
        enqueue=one,
        enqueue_all=every,
        left="from graphile_worker._private_jobs as j where j.attempts < j.max_attempts",
        clear="truncate graphile_worker._private_jobs",
        setup=((*worker, "--schema-only"),),
        worker=worker,
        connections=CONNECTIONS,
        dedupes=dedupes,
    )


PLAIN = _system(
    "graphile-worker", ADD_JOB.format(job_key="null"), ADD_JOBS.format(job_key="null", source=ALL), dedupes=False
)
DEDUPED = _system(
    "graphile-worker, job_key",
    ADD_JOB.format(job_key="p_key"),
    ADD_JOBS.format(job_key="b.key", source=ALL_DIFFERENT),
    dedupes=True,
)
