// A named statement, so that every connection prepares it once.
const text = "call reports.recalculate_students(array[$1::text], null)"

export default async ({ student_id }, { withPgClient }) => {
  await withPgClient((client) => client.query({ name: "recalculate", text, values: [student_id] }))
}
