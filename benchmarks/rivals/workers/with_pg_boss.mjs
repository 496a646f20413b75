// pg-boss's side of the contest. `setup` creates the schema and the queues; `each` and `batch` work.
import { createRequire } from "node:module"

// The packages are installed apart from the checkout's files, where a bare import would look for them.
const installed = createRequire(process.env.NODE_HOME + "/")
const { PgBoss } = await import(installed.resolve("pg-boss"))
const pg = installed("pg")

const connections = Number(process.env.CONNECTIONS)
const queue = process.env.QUEUE
const boss = new PgBoss({ connectionString: process.env.DATABASE_URL, max: connections + 2, useListenNotify: true })
boss.on("error", (error) => console.error(error))
await boss.start()

// A table of the queue's own, woken by NOTIFY; what is completed is kept for a day instead of a week.
async function setUp() {
  const options = { partition: true, notify: true, deleteAfterSeconds: 86400 }
  await boss.createQueue("reports", options)
  await boss.createQueue("reports_short", { ...options, policy: "short" })
  await boss.stop()
}

const text = "call reports.recalculate_students($1::text[], null)"

// A job is a pupil's: the handler is given many, and makes a call for each.
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: connections })
const each = (jobs) =>
  Promise.all(jobs.map((job) => pool.query({ name: "recalculate", text, values: [[job.data.student_id]] })))

// One call for all pupils of the jobs, in the transaction that completes them.
const batch = (jobs, db) => db.executeSql(text, [[...new Set(jobs.map((job) => job.data.student_id))]])

async function work(handler, options) {
  const polling = { pollingIntervalSeconds: 0.5, notifyPollingIntervalSeconds: 5, burstWhenBatchFull: true }
  await boss.work(queue, { localConcurrency: 2, ...polling, ...options }, handler)
  process.once("SIGTERM", async () => {
    await boss.stop()
    process.exit(0)
  })
}

if (process.argv[2] === "setup") await setUp()
else if (process.argv[2] === "each") await work(each, { batchSize: 100 })
else await work(batch, { batchSize: 500, transactional: true })
