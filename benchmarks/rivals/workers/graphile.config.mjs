// graphile-worker's side of the contest: its configuration; the task is in tasks/.
// Values are those of "Performance" in its documentation, but for concurrentJobs, which are there 24 for as many threads,
// and for maxPoolSize, which "Configuration" wants above concurrentJobs + 2 when tasks use the pool.
import { createRequire } from "node:module"

// The packages are installed apart from the checkout's files, where a bare import would look for them.
const installed = createRequire(process.env.NODE_HOME + "/")
const { WorkerPreset } = await import(installed.resolve("graphile-worker"))
const { Logger } = installed("@graphile/logger")

const connections = Number(process.env.CONNECTIONS)

export default {
  extends: [WorkerPreset],
  worker: {
    connectionString: process.env.DATABASE_URL,
    concurrentJobs: connections,
    maxPoolSize: connections + 4,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    taskDirectory: new URL("tasks", import.meta.url).pathname,
    // It would log every job.
    logger: new Logger(() => (level, message) => level === "error" && console.error(message)),
  },
}
